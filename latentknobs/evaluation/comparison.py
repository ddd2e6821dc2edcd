"""The evaluator: which policies answer which prompts, and how their scores become a report.

`train`, `evaluate` and `headroom` take the policies, the stages and their seeds from here. All policies of a stage answer the
same prompts with the same random numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from latentknobs.adapter import KnobAdapter
from latentknobs.data.prompts import Prompt
from latentknobs.engines.base import Engine
from latentknobs.errors import ConfigError, GridError, RewardError
from latentknobs.evaluation.report import (
    ALL,
    BINNED,
    ENTROPY,
    GREEDY,
    HEAD,
    MEAN,
    MIXTURE,
    PER_TASK,
    SHUFFLED,
    STATISTICS,
    Report,
    judged,
)  # fmt: skip
from latentknobs.evaluation.tuning import beyond, settings_of
from latentknobs.heads.features import PORTABLE
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Choices, ConstantPolicy, GreedyPolicy, MeanShift, Pick, Policy, Shuffle, UniformPolicy

Rewards = Mapping[str, NDArray[np.float64]]  # (S, P) by policy
WIDER = 8  # constants beyond the grids at most
TUNING, JUDGING, CHOOSING = 101, 1001, 2001  # what stages add to the seed of a run, so that no two share their draws


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


def lineup(space: KnobSpace, rival: Sequence[str] = PORTABLE) -> list[Compared]:
    """Whom an adapter, with a rival head on the features `rival`, is compared with: itself, constants, and simpler policies."""
    return [
        Compared(HEAD, "head", KnobAdapter.policy),
        *(fixed(space.label(k), ConstantPolicy(space, k), "constant") for k in range(space.K)),
        fixed(GREEDY, GreedyPolicy()),
        Compared(MIXTURE, "baseline", lambda adapter, pick: UniformPolicy(adapter.space, adapter.segmenter)),
        Compared(ENTROPY if tuple(rival) == ("entropy",) else STATISTICS, "baseline", KnobAdapter.rival_policy),
    ]


def same_as(name: str, policies: Mapping[str, Policy]) -> str:
    """The policy whose responses are those of another one, so that they need not be generated twice; mostly itself."""
    cold = next((k for k, one in policies.items() if isinstance(one, ConstantPolicy) and _is_greedy(one)), GREEDY)
    return cold if name == GREEDY else name


def _is_greedy(policy: ConstantPolicy) -> bool:
    return policy.space.options[policy.option] == {"temperature": 0.0}


@dataclass(frozen=True)
class Stage:
    """Some policies, the prompts that they answer, and how many times."""

    name: str  # of its files in a run
    compared: Sequence[Compared]
    prompts: Sequence[Prompt]
    copies: int
    seed: int  # added to the seed of the run, so that no two stages share their draws
    notes: dict[str, str] = field(default_factory=dict)  # what some of the policies are in detail

    @property
    def responses(self) -> int:
        """How many responses it takes."""
        return len(self.compared) * len(self.prompts) * self.copies

    def policies(self, adapter: Any, pick: Pick) -> dict[str, Policy]:
        """Its policies by name, in order; without an adapter (None) where none depends on it."""
        built = {one.name: one.build(adapter, pick) for one in self.compared}
        return {name: policy for name, policy in built.items() if policy is not None}


def stages(compared: Sequence[Compared], tune: Sequence[Prompt], held_out: Sequence[Prompt], seeds: int) -> tuple[Stage, Stage]:
    """First the constants on training prompts, once each; then everything on held-out prompts, `seeds` times each."""
    constants = [one for one in compared if one.role == "constant"]
    return Stage("tuning", constants, tune, 1, TUNING), Stage("evaluation", compared, held_out, seeds, JUDGING)


def choosing(found: Mapping[str, KnobAdapter], pick: Pick, dev: Sequence[Prompt], seeds: int) -> Stage:
    """What an adapter may hold, on the prompts that tune, with random numbers that tuned nothing."""
    return Stage("choice", [fixed(name, adapter.policy(pick)) for name, adapter in found.items()], dev, seeds, CHOOSING)


CONTROLLED = 3  # controls at most


def controls(policy: Policy, choices: Choices, prompts: Sequence[Prompt], seeds: int) -> Stage:
    """Whom else the head is compared with: controls of its own choices (`policies.controls`, `choices_of`).

    They answer the same prompts with the same random numbers. A head that always chooses the same has no controls.
    """
    space, segmenter = policy.space, policy.segmenter
    if (choices.value_MJ == choices.value_MJ[0]).all():
        return Stage("controls", [], prompts, seeds, JUDGING)
    mean = MeanShift(space, choices)
    found = [fixed(MEAN, mean), fixed(SHUFFLED, Shuffle(space, segmenter, choices))]
    if choices.entropy_M is not None:
        found.append(fixed(BINNED, Shuffle(space, segmenter, choices, binned=True)))
    return Stage("controls", found, prompts, seeds, JUDGING, {MEAN: mean.label})


def widen(space: KnobSpace, tuning: Stage, rewards: Rewards, score: Callable[[Stage], Rewards], engine: Engine) -> Rewards:
    """The rewards of all constants that are tuned: of those of the space, then of values beyond its grids, as long as the best
    one stands on their edge and the engine takes its neighbours; `score` answers a stage. A score that fails beyond the grids
    alone counts as the lowest of all.
    """
    rewards, stage = dict(rewards), "wider"
    kept = judged(rewards)
    least = min((float(one[:, kept].min()) for one in rewards.values() if kept.any()), default=0.0)
    while True:
        more = [one for one in _beyond(space, rewards) if _runs(engine, one[1])][: space.K + WIDER - len(rewards)]
        if more or stage == "wider":  # which a run has planned
            compared = [fixed(name, one, "constant") for name, one in more]
            found = score(replace(tuning, name=stage, compared=compared))
            rewards |= {name: np.where(np.isnan(one) & kept, least, one) for name, one in found.items()}
        if not more:
            return rewards
        stage = f"wider-{len(rewards) - space.K + 1}"


def most_wider(space: KnobSpace, tuning: Stage) -> int:
    """How many responses `widen` takes at most."""
    return WIDER * len(tuning.prompts) * tuning.copies * space.is_product


def judging(evaluation: Stage, space: KnobSpace, tuned: Rewards) -> Stage:
    """The stage that judges, with the best constant where that is beyond the grids."""
    best, known = best_of(tuned), list(evaluation.compared)
    if best not in {one.name for one in known}:
        known.insert(1 + space.K, fixed(best, constant_of(space, best), "constant"))
    return replace(evaluation, compared=known)


def best_of(tuned: Rewards) -> str:
    """The constant with the best mean reward on the prompts of which all scores are known."""
    kept = judged(tuned)
    return max(tuned, key=lambda name: float(tuned[name][:, kept].sum()))


def constant_of(space: KnobSpace, name: str) -> ConstantPolicy:
    """A constant of the knobs of a space by its label; GridError if a knob takes no such value."""
    values = settings_of(_spec(name))
    knobs = [type(knob)(**dict(knob) | {"options": (values[knob.name],)}) for knob in space.knobs]
    return ConstantPolicy(KnobSpace.of(*knobs, order=list(space.names)))


def _beyond(space: KnobSpace, tuned: Rewards) -> list[tuple[str, ConstantPolicy]]:
    """The neighbours of the best constant that were not tuned: those beyond the grids, if it stands on their edge."""
    found = []
    for spec in beyond(_spec(best_of(tuned)), [_spec(name) for name in tuned]) if space.is_product else ():
        name = spec.partition(":")[2].replace("=", " ").replace(",", ", ")
        with suppress(GridError):
            found.append((name, constant_of(space, name)))
    return found


def _runs(engine: Engine, policy: Policy) -> bool:
    try:
        engine.check(policy)
    except ConfigError:  # a server takes temperatures up to 2
        return False
    return True


def _spec(label: str) -> str:
    return "constant:" + label.replace(", ", ",").replace(" ", "=")


def numbers_of(adapter: KnobAdapter, tuning: Stage, tuned: Rewards) -> str:
    """How many responses trained the head and tuned each constant, and what was tried, or not, where the best is at the edge."""
    space, further = adapter.space, _beyond(adapter.space, tuned)
    wider = [name for name in tuned if name not in {space.label(k) for k in range(space.K)}]
    edge = f" The best of the options was at their edge, so these were tuned, too: {'; '.join(wider)}." if wider else ""
    edge += f" The best, {best_of(tuned)}, is at the edge: {further[0][0]} was not tried." if further else ""
    count = f"very constant was tuned on {len(tuning.prompts) * tuning.copies:,} responses.{edge}"
    trained = adapter.training.get("trained on")
    return f"The head was trained on {trained}; e{count}" if trained else f"E{count}"


def task_of(prompt: Prompt) -> str:
    """The column `task` of a prompt, `all` without one."""
    return str(prompt.columns.get("task", ALL)).encode(errors="replace").decode()  # half a surrogate pair fits no file or plot


def rewards_of(values: Iterable[float | None], prompts: int) -> NDArray[np.float64]:
    """(S, P) rewards from scores in the order of the prompts, the seeds of a prompt next to each other; NaN for a None."""
    scores = [np.nan if value is None else value for value in values]
    return rearrange(np.array(scores, dtype=float), "(P S) -> S P", P=prompts)


def make_report(
    rewards: dict[str, NDArray[np.float64]], tuning: Mapping[str, NDArray[np.float64]], tasks: Sequence[str], *,
    tuned_tasks: Sequence[str] = (), level: str = "token", notes: dict[str, str] | None = None,
) -> Report:  # fmt: skip
    """The comparison of rewards that are known already. Where there are several tasks, the best constant per task takes part.

    Args:
        rewards: for each policy (seeds, prompts) rewards on held-out prompts; NaN where the reward failed.
        tuning: the same for each constant on the prompts that tune.
        tasks, tuned_tasks: of the held-out prompts, and of those that tune.
        level, notes: see `Report`.

    Raises:
        RewardError: of the prompts that tune or of the held-out prompts none has a score for every response.
    """
    for what, values in (("prompts that tune the constant", tuning), ("held-out prompts", rewards)):
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
    tuned, notes = max(means, key=lambda name: means[name]), dict(notes or {})
    if len(set(tuned_tasks)) > 1:
        task_P = np.array(tuned_tasks)
        best = {task: _best(tuning, kept & (task_P == task), tuned) for task in sorted(set(tuned_tasks))}
        chosen = [best.get(task, tuned) for task in tasks]
        rewards = rewards | {PER_TASK: np.stack([rewards[name][:, p] for p, name in enumerate(chosen)], -1)}
        notes[PER_TASK] = "; ".join(f"{task}: {name}" for task, name in best.items())
    return Report(rewards, list(tasks), tuned, means, level=level, notes=notes)


def _best(tuning: Mapping[str, NDArray[np.float64]], kept: NDArray[np.bool_], otherwise: str) -> str:
    return max(tuning, key=lambda name: tuning[name][:, kept].mean()) if kept.any() else otherwise
