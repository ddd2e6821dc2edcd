"""The evaluator: which policies answer which prompts, and how their scores become a report.

`train` keeps the responses as files of its run, `evaluate` in memory; both take the policies, the stages and their seeds from
here. All policies of a stage answer the same prompts with the same random numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from latentknobs.adapter import KnobAdapter
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.errors import RewardError
from latentknobs.evaluation.report import ALL, ENTROPY, GREEDY, HEAD, MIXTURE, Report, judged
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import ConstantPolicy, GreedyPolicy, Pick, Policy, UniformPolicy


class Compared(NamedTuple):
    """A policy of the comparison; `build` makes it from an adapter, or None where the adapter lacks the part.

    The best of all that are there as a `constant` is tuned on training prompts.
    """

    name: str
    role: Literal["head", "constant", "baseline"]
    build: Callable[[KnobAdapter, Pick], Policy | None]


def fixed(name: str, policy: Policy, role: Literal["constant", "baseline"] = "baseline") -> Compared:
    """A policy that does not depend on the adapter."""
    return Compared(name, role, lambda adapter, pick: policy)


def lineup(space: KnobSpace) -> list[Compared]:
    """Whom an adapter of a space is compared with: itself, every option as a constant, and what needs no learning or less."""
    return [
        Compared(HEAD, "head", KnobAdapter.policy),
        *(fixed(space.label(k), ConstantPolicy(space, k), "constant") for k in range(space.K)),
        fixed(GREEDY, GreedyPolicy()),
        Compared(MIXTURE, "baseline", lambda adapter, pick: UniformPolicy(adapter.space, adapter.segmenter)),
        Compared(ENTROPY, "baseline", KnobAdapter.entropy_policy),
    ]


@dataclass(frozen=True)
class Stage:
    """Some policies, the prompts that they answer, and how many times.

    Attributes:
        name: of its files in a run.
        seed: added to the seed of the run, so that no two stages share their draws.
    """

    name: str
    compared: Sequence[Compared]
    prompts: Sequence[Prompt]
    copies: int
    seed: int

    @property
    def responses(self) -> int:
        """How many responses it takes."""
        return len(self.compared) * len(self.prompts) * self.copies

    def policies(self, adapter: KnobAdapter, pick: Pick) -> dict[str, Policy]:
        """Its policies by name, in order."""
        built = {one.name: one.build(adapter, pick) for one in self.compared}
        return {name: policy for name, policy in built.items() if policy is not None}


def stages(compared: Sequence[Compared], tune: Sequence[Prompt], held_out: Sequence[Prompt], seeds: int) -> tuple[Stage, Stage]:
    """First the constants on training prompts, once each; then everything on held-out prompts, `seeds` times each."""
    constants = [one for one in compared if one.role == "constant"]
    return Stage("tuning", constants, tune, 1, 101), Stage("evaluation", compared, held_out, seeds, 1001)


def task_of(prompt: Prompt) -> str:
    """The column `task` of a prompt, `all` without one."""
    return str(prompt.columns.get("task", ALL))


def rewards_of(values: Iterable[float | None], prompts: int) -> NDArray[np.float64]:
    """(S, P) rewards from scores in the order of the prompts, the seeds of a prompt next to each other; NaN for a None."""
    scores = [np.nan if value is None else value for value in values]
    return rearrange(np.array(scores, dtype=float), "(P S) -> S P", P=prompts)


def make_report(
    rewards: dict[str, NDArray[np.float64]], tuning: Mapping[str, NDArray[np.float64]], tasks: Sequence[str],
    rollouts: dict[str, list[Rollout]] | None = None,
) -> Report:  # fmt: skip
    """The comparison of rewards that are known already.

    Args:
        rewards: for each policy (seeds, prompts) rewards on held-out prompts; NaN where the reward failed.
        tuning: the same for each constant on training prompts.
        tasks: of the held-out prompts.

    Raises:
        RewardError: of the training or of the held-out prompts none has a score for every response.
    """
    for what, values in (("training prompts that tune the constant", tuning), ("held-out prompts", rewards)):
        if not (kept := judged(values)).any():
            failed = {name: int(np.isnan(reward_SP).sum()) for name, reward_SP in values.items()}
            worst = max(failed, key=lambda name: failed[name])
            raise RewardError(
                f"None of the {len(kept)} {what} has a score for every response, so nothing can be compared. The reward failed "
                f"most often on {worst!r}: {failed[worst]} of {values[worst].size} responses. Repair the reward, or give more "
                "prompts."
            )
    kept = judged(tuning)
    means = {name: float(reward_SP[:, kept].mean()) for name, reward_SP in tuning.items()}
    return Report(rewards, list(tasks), max(means, key=lambda name: means[name]), means, rollouts or {})
