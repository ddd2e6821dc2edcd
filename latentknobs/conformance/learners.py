"""The suite of learners: a tiny bandit with a known best option in place of a language model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from latentknobs.conformance.suite import Suite, Violation, by_name, require
from latentknobs.data.columns import Column, Reading, store_rows
from latentknobs.data.examples import Batch, Example
from latentknobs.data.rollouts import Rollout
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.errors import LatentKnobsError
from latentknobs.heads.base import Head
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs.context import Observation
from latentknobs.knobs.knob import ScalingKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.learners.base import Inputs, Learner, Loss, find_learner
from latentknobs.likelihood import option_logps
from latentknobs.policies import Policy

PROMPTS, COPIES, T, V, D = 6, 4, 5, 7, 3
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)


class _Sharpness(ScalingKnob):
    """Multiplies logits."""

    name: ClassVar[str] = "sharpness"
    neutral: ClassVar[float] = 1.0
    options: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.0, 2.0)

    def temperature(self, value_N: Tensor) -> Tensor:
        return 1 / value_N


@dataclass(frozen=True)
class World:
    """A learner with scored rollouts of a frozen "LM" of random logits; the reward of each rollout is different."""

    kind: type[Learner]
    learner: Learner
    rollouts: list[Rollout]
    reward_N: list[float | None]

    @classmethod
    def of(cls, kind: type[Learner], settings: BaseModel | None = None) -> "World":
        """The bandit for a learner, with its own settings or the defaults."""
        space = KnobSpace.of(_Sharpness())
        inputs = Inputs(space, parse_level("every:2"), ("hidden",), hidden=8)
        random = torch.Generator().manual_seed(0)
        ids_RT = torch.randint(0, V, (PROMPTS * COPIES, T), generator=random).tolist()
        option_RS = torch.randint(0, space.K, (PROMPTS * COPIES, 3), generator=random)
        options_RT = option_RS.repeat_interleave(2, -1)[:, :T].tolist()
        rows = zip(ids_RT, options_RT, strict=True)
        rollouts = [Rollout(r // COPIES, tuple(ids), tuple(options), "") for r, (ids, options) in enumerate(rows)]
        rewards: list[float | None] = torch.rand(PROMPTS * COPIES, generator=random).tolist()
        return cls(kind, kind(settings or kind.Settings(), inputs), rollouts, rewards)

    def columns(self) -> dict[str, Column]:
        """What the learner declares."""
        return dict(self.kind.columns(self.learner.settings))

    def features(self) -> FeatureCache:
        """All rollouts as a store would hold them: 3 segments of 2, 2 and 1 tokens, or their tokens."""
        random = torch.Generator().manual_seed(1)
        row_T, first_S, chosen_S = store_rows(self.columns(), torch.arange(T) // 2)
        rows: dict[str, list[Tensor]] = {name: [] for name in self.columns()}
        for rollout in self.rollouts:
            logits_TV = torch.randn(T, V, generator=random)
            reading = Reading(rollout, logits_TV, option_logps(logits_TV, torch.tensor(rollout.ids), self.learner.inputs.space))
            for name, column in self.columns().items():
                rows[name].append(column.by_segment(reading, row_T, first_S))
        feature_RTD = torch.randn(len(self.rollouts), T, D, generator=random)
        columns, R, S = {name: torch.cat(parts) for name, parts in rows.items()}, len(self.rollouts), len(first_S)
        return FeatureCache(feature_RTD[:, chosen_S].flatten(0, 1), columns, torch.arange(0, R * S + 1, S))

    def examples(self, reward_N: list[float | None] | None = None) -> list[Example]:
        """What the learner learns from."""
        return self.learner.examples(iter(self.rollouts), self.reward_N if reward_N is None else reward_N)

    def batch(self) -> Batch:
        """All examples in one batch."""
        return Batch.read(self.features(), self.examples(), "cpu")

    def module(self, seed: int = 0, is_new: bool = False) -> nn.Module:
        """A new module, or one whose weights have moved at random, so that it says something."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.learner.module(*self.features().moments())
            if not is_new:
                for weight in module.parameters():
                    weight.data += 0.3 * torch.randn_like(weight)
        return module

    def loss(self, module: nn.Module, batch: Batch, reference: nn.Module | None = None) -> Loss:
        """The loss, checked for being one."""
        loss = self.learner.loss(module, batch, reference)
        require(isinstance(loss, Loss), f"loss returns {type(loss).__name__}; return a latentknobs.learners.Loss")
        return loss


def settings_have_defaults_and_survive_json(world: World) -> None:
    """`Settings()` is valid, comes back from JSON as it was, and an unknown setting is refused."""
    settings = world.kind.Settings()
    require(world.kind.Settings.model_validate_json(settings.model_dump_json()) == settings, "settings change through JSON")
    try:
        world.kind.Settings(**{"no_such_setting": 1})
    except ValidationError:
        return
    raise Violation("Settings takes a setting that it does not have; set extra='forbid' in its model_config")


def columns_are_rows_of_numbers(world: World) -> None:
    """Every column gives one row for each segment, in a number format that files can hold."""
    for name, column in world.columns().items():
        require(isinstance(name, str) and isinstance(column, Column), f"columns gives {name!r}: {column!r}; map names to Columns")
        value_N = world.features().columns[name]
        require(value_N.dtype in DTYPES, f"the column {name!r} holds {value_N.dtype}; use one of {', '.join(map(str, DTYPES))}")


def module_is_a_head_for_the_features(world: World) -> None:
    """`module` gives a trainable `Head` for as many features as there are, built again from its shape: an adapter can hold it."""
    module, inputs = world.module(is_new=True), world.learner.inputs
    require(isinstance(module, Head), f"module gives a {type(module).__name__}; an adapter holds a latentknobs.heads.base.Head")
    assert isinstance(module, Head)
    require(any(weight.requires_grad for weight in module.parameters()), "module has nothing to train")
    shape = module.Shape.model_validate(module.shape())
    again = type(module).of_shape(inputs.space, module.in_features, shape).state_dict()
    sizes, same = ({name: value.shape for name, value in state.items()} for state in (module.state_dict(), again))
    require(sizes == same, f"a head built from the shape {shape!r} has other weights")


def module_survives_its_state_dict(world: World) -> None:
    """A new module with another's state says the same, so that a run can be resumed."""
    module, again = world.module(seed=1), world.module(seed=2, is_new=True)
    again.load_state_dict(module.state_dict())
    feature_NF = world.features().feature_NF
    require(torch.equal(module(feature_NF), again(feature_NF)), "a module with the state of another says something else")


def examples_are_about_responses_to_one_prompt(world: World) -> None:
    """At least one; the same number of responses in each, all to its prompt, and a finite weight."""
    examples = world.examples()
    require(bool(examples), "examples gives nothing for rewards that all differ")
    require(len({len(e.responses) for e in examples}) == 1, "examples differ in their number of responses")
    for e in examples:
        prompts = {world.rollouts[n].prompt for n in e.responses}
        require(prompts == {e.prompt}, f"an example of prompt {e.prompt} holds responses to {sorted(prompts)}")
        require(abs(e.weight) < float("inf"), f"an example has the weight {e.weight}")


def examples_are_repeatable(world: World) -> None:
    """The same scores give the same examples."""
    require(world.examples() == world.examples(), "the same scores give other examples the second time; draw from inputs.seed")


def examples_ignore_failed_scores(world: World) -> None:
    """A rollout whose reward failed is in no example."""
    failed = {0, 5, 6, 23}
    rewards = [None if n in failed else reward for n, reward in enumerate(world.reward_N)]
    used = {n for e in world.examples(rewards) for n in e.responses} & failed
    require(not used, f"rollouts {sorted(used)} are in examples though their reward failed; leave out rewards that are None")


def scores_that_teach_nothing_are_a_clear_error(world: World) -> None:
    """Equal rewards, or none at all, are refused with an error of latentknobs.errors."""
    cure = "raise NoExamplesError, e.g. through latentknobs.learners.advantages"
    for rewards, what in (([1.0] * len(world.rollouts), "equal rewards"), ([None] * len(world.rollouts), "failed rewards only")):
        try:
            found = world.examples(list(rewards))
        except LatentKnobsError:
            continue
        except Exception as error:
            raise Violation(f"{what} raise {type(error).__name__}; {cure}") from error
        raise Violation(f"{what} give {len(found)} examples; {cure}")


def loss_is_one_finite_number_per_example(world: World) -> None:
    """(B,) losses and metrics and (M,) penalties, without NaN, with and without a reference."""
    batch = world.batch()
    B, M = len(batch.weight_B), len(batch.segments.feature_MF)
    for reference in (None, world.module(seed=3)):
        loss = world.loss(world.module(), batch, reference)
        sized = {"the loss": (loss.each_B, B)} | {f"the metric {name!r}": (value, B) for name, value in loss.metrics.items()}
        if loss.penalty_M is not None:
            sized["the penalty"] = (loss.penalty_M, M)
        for name, (value, size) in sized.items():
            require(value.shape == (size,), f"{name} has the shape {tuple(value.shape)} instead of {(size,)}: do not reduce it")
            require(bool(value.isfinite().all()), f"{name} is not finite")


def loss_has_a_gradient(world: World) -> None:
    """Finite for every weight, and not zero for all."""
    module = world.module()
    gradients = torch.autograd.grad(world.loss(module, world.batch()).each_B.mean(), list(module.parameters()), allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    require(len(found) == len(gradients), "some weights of the module have no part in the loss")
    require(all(bool(gradient.isfinite().all()) for gradient in found), "the gradient is not finite")
    require(any(bool(gradient.any()) for gradient in found), "the gradient is zero everywhere")


def loss_is_repeatable(world: World) -> None:
    """The same inputs give the same loss and stay as they were."""
    module, batch = world.module(), world.batch()
    before = {name: value.clone() for name, value in _tensors(module, batch)}
    first, again = (world.loss(module, batch).each_B.detach() for _ in range(2))
    require(torch.equal(first, again), "the same batch has another loss the second time")
    changed = [name for name, value in _tensors(module, batch) if not torch.equal(value, before[name])]
    require(not changed, f"loss writes into {', '.join(changed)}")


def examples_do_not_mix(world: World) -> None:
    """The loss of an example does not depend on the others in its batch, which are drawn at random."""
    module, features = world.module(), world.features()
    examples = world.examples()
    whole_B = world.loss(module, Batch.read(features, examples, "cpu")).each_B
    alone_B = torch.cat([world.loss(module, Batch.read(features, [e], "cpu")).each_B for e in examples])
    require(torch.allclose(whole_B, alone_B, atol=1e-5), "the loss of an example depends on the others in its batch")


def reference_gets_no_gradient(world: World) -> None:
    """The module that explored is only read."""
    module, reference = world.module(), world.module(seed=3)
    world.loss(module, world.batch(), reference).each_B.sum().backward()
    touched = any(weight.grad is not None and bool(weight.grad.any()) for weight in reference.parameters())
    require(not touched, "the reference gets a gradient; read it under torch.no_grad()")


def explorer_and_policy_are_policies(world: World) -> None:
    """Before and after there is a module they choose values in the space; the module always yields the same policy."""
    module = world.module()
    makers: dict[str, Callable[[], Policy | None]] = {
        "explorer(None)": lambda: world.learner.explorer(None),
        "explorer(module)": lambda: world.learner.explorer(module),
        "policy(module, 'greedy')": lambda: world.learner.policy(module, "greedy"),
    }
    for name, make in makers.items():
        policy = make()
        if policy is None and name.startswith("explorer"):
            continue  # it learns from text that is there
        require(isinstance(policy, Policy), f"{name} gives {policy!r}, which is not a Policy")
        assert policy is not None
        seen = Observation(hidden_ND=torch.ones(4, D), logits_NV=torch.zeros(4, V), position_N=torch.zeros(4, dtype=torch.long))
        choice = policy.choose(seen, torch.full((4,), 0.5, dtype=torch.float64), policy.start(4))
        shape = (4, len(world.learner.inputs.space.knobs))
        require(choice.value_NJ.shape == shape, f"{name} chooses values of the shape {tuple(choice.value_NJ.shape)}, not {shape}")
        again = make()
        assert again is not None
        require(policy.identity() == again.identity(), f"{name} has another identity the second time")


def _tensors(module: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"the weight {name}", value) for name, value in module.state_dict().items())
    yield from ((f"the column {name!r}", value) for name, value in batch.segments.columns.items())
    yield "the features", batch.segments.feature_MF
    yield "the weights of the examples", batch.weight_B


CHECKS = by_name(
    settings_have_defaults_and_survive_json, columns_are_rows_of_numbers, module_is_a_head_for_the_features,
    module_survives_its_state_dict, examples_are_about_responses_to_one_prompt, examples_are_repeatable,
    examples_ignore_failed_scores, scores_that_teach_nothing_are_a_clear_error, loss_is_one_finite_number_per_example,
    loss_has_a_gradient, loss_is_repeatable, examples_do_not_mix, reference_gets_no_gradient,
    explorer_and_policy_are_policies,
)  # fmt: skip


def _find(learner: str | type[Learner], settings: BaseModel | None = None) -> World:
    """A class is checked as it is, installed or not, with its default settings unless others are passed."""
    return World.of(find_learner(learner) if isinstance(learner, str) else learner, settings)


SUITE = Suite(
    "learner", CHECKS, _find, name=lambda world: world.kind.name, show=lambda world: f"{world.kind.name}: {world.kind!r}"
)
