"""The contract of a learner: how scored responses become a policy.

An outside package adds a learner by a subclass of `Learner` and an entry point in the group `latentknobs.learners`:

    [project.entry-points."latentknobs.learners"]
    rwr = "latentknobs_example.rwr:RewardWeightedRegression"

`train(learner="rwr")` then runs rollouts, scores, `examples`, the feature store and one optimiser loop for it. A learner must say
what it keeps of a response (`columns`), what it learns from (`examples`) and its `loss`; the rest has defaults: an `OptionHead`
over the space, explored by sampling from it. See docs/examples/latentknobs-example.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel
from torch import Tensor, nn

from latentknobs.data.columns import SAMPLED_OPTION, Column
from latentknobs.data.examples import Batch, Example
from latentknobs.data.preferences import Preferences
from latentknobs.data.rollouts import Rollout
from latentknobs.entry_points import load
from latentknobs.errors import ConfigError, PluginError
from latentknobs.heads.features import budgets_in
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import BalancedPolicy, Pick, Policy, UniformPolicy
from latentknobs.policies.heads import head_policy


class Loss(NamedTuple):
    """The loss of B examples, un-reduced.

    Attributes:
        each_B: of each example; training lowers its mean.
        metrics: (B,) further numbers of each example, whose means over held-out examples are logged.
        penalty_M: of each of the batch's M segments; training lowers its mean over the segments of all examples, too.
    """

    each_B: Tensor
    metrics: Mapping[str, Tensor] = {}
    penalty_M: Tensor | None = None


class Budget(NamedTuple):
    """What the responses of a step may cost.

    Attributes:
        tokens: the longest response.
        samples: how many responses to a prompt earn one reward together; policies read both (`remaining`, `samples`).
    """

    tokens: int
    samples: int = 1


@dataclass(frozen=True)
class Inputs:
    """What a learner knows of a run.

    Attributes:
        space, segmenter: what is chosen, and how long one choice lasts.
        features: names of what the module reads.
        hidden, rank, factorised: the shape of an `OptionHead`.
        first_round: the policy of the rollouts before there is a module.
        seed: of ties that are broken at random.
        rollouts: responses to each prompt.
        samples: of the budget that the rollouts were sampled under.
    """

    space: KnobSpace
    segmenter: Segmenter
    features: tuple[str, ...]
    hidden: int | None = None
    rank: int | None = None
    factorised: bool = False
    first_round: Literal["uniform", "balanced"] = "uniform"
    seed: int = 0
    rollouts: int = 8
    samples: int = 1


class Count(NamedTuple):
    """A count and its total."""

    some: int
    of: int

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 of nothing."""
        return self.some / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.some} of {self.of} ({self.share:.0%})"


@dataclass(frozen=True)
class Fitted:
    """A finished fit, for `Learner.findings`.

    Attributes:
        examples: those it was trained on, and the held-out ones.
        train, held_out: means of the loss's metrics over some of either; empty where there are no such examples.
        train_size, held_out_size: over how many.
        task_P: the task of each prompt.
        length_R: tokens of each response, as `Example.responses` counts them.
    """

    examples: Sequence[Example]
    train: Mapping[str, float]
    held_out: Mapping[str, float]
    train_size: int
    held_out_size: int
    task_P: Sequence[str]
    length_R: Sequence[int]


class Learner(ABC):
    """Turns scored responses into a policy. One object serves one set of features.

    Attributes:
        name: that of its entry point.
        version: change it with the code, so that finished stages are run again.
        Settings: its settings, a pydantic model with a default for each; `settings` is an instance.
        watched: the metric, higher being better, that early stopping watches; None: the loss.
        on_policy: whether every step of the optimiser samples `pairs_per_step` responses of its own with the module of that step,
            and learns from these alone (`training/steps.py`); otherwise it learns from the files of a round.
        defaults: of settings of other sections, where the learner's own are better, by their flat names.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    Settings: ClassVar[type[BaseModel]]
    watched: ClassVar[str | None] = None
    on_policy: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, settings: BaseModel, inputs: Inputs) -> None:
        if not isinstance(settings, self.Settings):
            raise ConfigError(
                f"The learner {self.name!r} takes settings of its own, {self.Settings.__name__}, not {type(settings).__name__}."
            )
        self.settings: Any = settings
        self.inputs = inputs

    @classmethod
    @abstractmethod
    def columns(cls, settings: Any) -> Mapping[str, Column]:
        """What the store keeps of every segment beside its features, by the names that `loss` reads them with."""

    @abstractmethod
    def examples(
        self, rollouts: Iterable[Rollout], reward_N: Sequence[float | None], second_N: Sequence[float | None] | None = None
    ) -> list[Example]:
        """What is learned from N scored rollouts, by their indices.

        Args:
            rollouts: can be read once, because they may be more than fit in memory.
            reward_N: their rewards; None where the reward failed: such a rollout is in no example.
            second_N: their second scores, where `second_reward` is set.

        Raises:
            NoExamplesError: nothing can be learned from these.
        """

    @abstractmethod
    def loss(self, module: nn.Module, batch: Batch, reference: nn.Module | None) -> Loss:
        """The loss of a batch, with gradient.

        Args:
            reference: the module that explored, to be used without gradient; None before there was one.
        """

    def module(self, mean_F: Tensor, std_F: Tensor) -> nn.Module:
        """What is trained, at its beginning, for F features of this mean and standard deviation: a `latentknobs.heads.base.Head`,
        because an adapter holds one; override `policy` for one that is not registered with `head_policy`.
        """
        inputs = self.inputs
        budgets = budgets_in(inputs.features)
        head = OptionHead(inputs.space, len(mean_F), inputs.hidden, inputs.factorised, inputs.rank, budgets)
        head.fit_scaler(mean_F, std_F)
        return head

    def explorer(self, module: nn.Module | None) -> Policy | None:
        """The policy that samples the rollouts of a round, `module` being that of the round before.

        None: the learner learns from existing responses, which a run has in `preferences` only.
        """
        if module is not None:
            return self.policy(module, "sample")
        first = {"uniform": UniformPolicy, "balanced": BalancedPolicy}[self.inputs.first_round]
        return first(self.inputs.space, self.inputs.segmenter)

    def policy(self, module: nn.Module, pick: Pick) -> Policy:
        """What the module does in decoding."""
        return head_policy(module, self.inputs.space, self.inputs.segmenter, self.inputs.features, pick)

    def from_preferences(self, preferences: Preferences) -> list[Example]:
        """What is learned from preferences that were collected elsewhere, in place of rollouts and their scores; see `check`."""
        raise NotImplementedError(f"The learner {self.name!r} learns from scored rollouts.")

    @classmethod
    def learns_alone(cls, settings: Any) -> bool:
        """Whether it learns from `preferences` that hold single responses, without a comparison."""
        return False

    @classmethod
    def check(cls, settings: Any, *, has_preferences: bool, has_second: bool) -> None:
        """Refuses what the learner cannot learn from, before anything is loaded.

        Args:
            has_preferences, has_second: whether `preferences` and `second_reward` are set.

        Raises:
            ConfigError: naming the learner or its setting.
        """
        if has_preferences and cls.from_preferences is Learner.from_preferences:
            raise ConfigError(
                f"The learner {cls.name!r} learns from scored rollouts, not from preferences. Leave out preferences, or choose a "
                "learner that takes them, e.g. lpo."
            )
        if has_preferences and cls.needs_options(settings):
            raise ConfigError(
                f"With these settings the learner {cls.name!r} learns from the options that responses were sampled with, and "
                f"preferences from elsewhere do not have them. Leave out preferences, or change the settings: {settings!r}."
            )

    def most_responses(self, rollouts: int) -> int:
        """At most so many of a prompt's rollouts are in its examples: for estimates of time and disk."""
        return rollouts

    @property
    def updates(self) -> int:
        """On policy: how many times the optimiser moves the module on the responses of a step.

        From the second time on, `loss` gets the module that sampled them as its `reference`.
        """
        return 1

    @property
    def imitates(self) -> str | None:
        """On policy: the name of a policy that the module imitates before its first step; None: it starts as it is."""
        return None

    def budget(self, tokens: int, step: int) -> Budget:
        """On policy: the budget of a step (from 0), `tokens` being the run's longest response.

        Raises:
            ConfigError: settings that do not fit the run.
        """
        return Budget(tokens)

    def budgets(self, tokens: int, steps: int) -> list[Budget]:
        """On policy: the different budgets of so many steps."""
        return list(dict.fromkeys(self.budget(tokens, step) for step in range(steps)))

    def earned(self, rollouts: Sequence[Rollout], reward_N: Sequence[float | None]) -> dict[int, float]:
        """By prompt, what its responses earn under the budget of `inputs`: here their mean reward; NaN where one failed."""
        members: dict[int, list[float]] = {}
        for rollout, reward in zip(rollouts, reward_N, strict=True):
            members.setdefault(rollout.prompt, []).append(nan if reward is None else reward)
        return {prompt: fmean(rewards) for prompt, rewards in members.items()}

    @classmethod
    def needs_options(cls, settings: Any) -> bool:
        """Whether it learns from the options that responses were sampled with."""
        return any(column in SAMPLED_OPTION.values() for column in cls.columns(settings).values())

    def summary(self, module: nn.Module, feature_NF: Tensor) -> dict[str, float]:
        """Numbers about the module alone that are logged with every validation, read off some features."""
        return {}

    def findings(self, fitted: Fitted) -> list[str]:
        """Known ways in which this kind of learning fails, if the fit shows them: a sentence or two each."""
        return []


def find_learner(name: str) -> type[Learner]:
    """The installed learner of a name; UnknownNameError if there is none, PluginError if it is broken or not a learner."""
    kind = load("learner", name)
    if not (isinstance(kind, type) and issubclass(kind, Learner)):
        raise PluginError(f"The learner {name!r} is {kind!r}, not a latentknobs.learners.Learner. Repair its package.")
    return kind
