"""REINFORCE on the testbed, stories260K and SmolLM2: estimators, LPO at equal rollouts, token and parallel budgets, ablations.

    python -m benchmarks.reinforce                               # everything, about two hours on one core; it can be interrupted
    python -m benchmarks.reinforce curves --task math --seed 3   # one part, task and seed: many of these can run side by side

What runs on SmolLM2-135M-Instruct (tasks that begin with smollm2) needs the model of `make instruct`, and a GPU to end in time.
Every result is a file in runs/reinforce; `python -m benchmarks.reinforce tables` reads them alone (docs/reinforce-results.md).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

import latentknobs as lk
from benchmarks.reinforce_runs import (
    BOTH,
    INSTRUCT,
    SO,
    STORIES,
    SUMS,
    Case,
    both,
    choices,
    earned,
    has_instruct,
    judged,
    lm,
    longest_of,
    lpo_heads,
    prompts_of,
    spread,
    tuned,
    turn,
)  # fmt: skip
from benchmarks.reinforce_tables import tables
from latentknobs.data.rollouts import roll_out
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners.reinforce.advantages import group_rewards
from latentknobs.policies import ConstantPolicy, Policy, UniformPolicy
from latentknobs.policies.controls import MeanShift, Shuffle

OUT = Path("runs/reinforce")
TASKS = ("constrained", "mixture", "math")
WITH_STORIES = (*TASKS, STORIES, SO)  # for the curves
SEEDS = range(1, 6)
POINTS = (256, 512, 1024, 2048)  # rollouts after which a head is judged; a step of REINFORCE has 64
RATES = {"score": (3e-3, 1e-2, 3e-2), "marginal": (3e-3, 1e-2, 3e-2), "lpo": (3e-4, 1e-3, 3e-3)}  # the second: the default
TEMPERATURES = lk.KnobSpace.of("temperature")
FOUR = lk.KnobSpace.of({"temperature": [0.0, 0.5, 1.0, 1.25]})  # the paper's actions at token level
FINE = lk.KnobSpace.of({"temperature": [0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25]})  # of constants
BUDGETS = {
    "mixture": (16, 32, 64),
    "math": (16, 20, 24),
    SO: (16, 32, 48),
}  # tokens: nearly every story is cut by each, solutions by the first two
SEEN = {"with the budget": ("hidden", "remaining"), "without it": ("hidden",), "statistics": ("entropy", "max_prob")}
SIX = lk.KnobSpace.of("temperature:0,0.5,0.75,1,1.25", "top_k:0,10", "top_p:0.95,1", "min_p:0,0.1").select(
    [{"temperature": t, "top_k": k, "top_p": p, "min_p": m} for t, k, p, m in (
        (0.0, 0, 1, 0), (0.5, 0, 1, 0), (1.0, 0, 1, 0), (1.25, 0, 1, 0), (0.75, 10, 1, 0), (0.75, 10, 0.95, 0.1))]
)  # fmt: skip
"""The paper's six strategies for mixed tasks."""
TOGETHER = (1, 4, 8)


class Job(NamedTuple):
    """A result to be had: its file's name, its task, its training seed (0: none), and what makes it."""

    name: str
    task: str
    seed: int
    make: Callable[[], Any]


def curves() -> Iterator[Job]:
    """Reward against rollouts for each learner and learning rate, on tuning and on held-out prompts."""
    for seed in SEEDS:
        for task in WITH_STORIES:
            for estimator in ("marginal", "score"):
                for rate in RATES[estimator]:
                    case = Case(task, seed, TEMPERATURES, {"estimator": estimator, "learning_rate": rate})
                    yield Job(f"curves/{task} {estimator} {rate:g} {seed}", task, seed, partial(points, case))
            yield Job(f"curves/{task} lpo {seed}", task, seed, partial(lpo_points, task, seed))


def points(case: Case) -> dict[int, Any]:
    """Rewards of one run of REINFORCE, by rollouts."""
    return {size: both(case.task, policy) for size, policy in case.heads(POINTS).items()}


def lpo_points(task: str, seed: int) -> dict[str, dict[int, Any]]:
    """Rewards of LPO, by learning rate and rollouts."""
    found: dict[str, dict[int, Any]] = {f"{rate:g}": {} for rate in RATES["lpo"]}
    for size, rate, policy in lpo_heads(task, seed, TEMPERATURES, RATES["lpo"], POINTS):
        found[f"{rate:g}"][size] = both(task, policy)
    return found


def rivals() -> Iterator[Job]:
    """What needs no learning: constants on tuning and on held-out prompts, the uniform mixture, TURN."""
    for task in WITH_STORIES:
        policies = [(f"constant {k}", ConstantPolicy(FINE, k)) for k in range(FINE.K)]
        for name, policy in [*policies, ("uniform", UniformPolicy(TEMPERATURES, parse_level("token")))]:
            yield Job(f"rivals/{task} {name}", task, 0, partial(both, task, policy))


def variance() -> Iterator[Job]:
    """Spread of the gradient of 8 prompts x 8 rollouts, on the same rollouts under both estimators."""
    for task in (*TASKS, SO):
        case = Case(task, 50, TEMPERATURES, {})
        yield Job(f"variance/{task} start", task, 0, partial(spread, case, None))
        yield Job(f"variance/{task} later", task, 0, lambda case=case: spread(case, case.heads([512])[512].head))


def tokens() -> Iterator[Job]:
    """Token level under token budgets: heads, controls of the first, and what needs no training."""
    for task, budgets in BUDGETS.items():
        for seed in SEEDS:
            for name, features in SEEN.items():
                case = Case(task, seed, FOUR, {"token_budgets": list(budgets), "features": features})
                yield Job(f"tokens/{task} {name} {seed}", task, seed, partial(budgeted, case, name == "with the budget"))
        yield Job(f"tokens/{task} constants", task, 0, partial(constants, task))
        for name, policy in (("uniform mixture", UniformPolicy(FOUR, parse_level("token"))), ("TURN", None)):
            yield Job(f"tokens/{task} {name}", task, 0, lambda task=task, policy=policy: by_budget(task, policy or turn(task)))


def by_budget(task: str, policy: Policy) -> list[Any]:
    """Held-out rewards at each token budget."""
    return [judged(task, policy, longest) for longest in BUDGETS[task]]


def constants(task: str) -> dict[str, Any]:
    """At each budget: greedy decoding, and the temperature that is best on tuning prompts."""
    policies = [ConstantPolicy(FINE, k) for k in range(FINE.K)]
    best = [max(range(FINE.K), key=lambda k: tuned(task, policies[k], longest)) for longest in BUDGETS[task]]
    chosen = [FINE.label(k) for k in best]
    held_out = [judged(task, policies[k], longest) for k, longest in zip(best, BUDGETS[task], strict=True)]
    return {"greedy": by_budget(task, policies[0]), "chosen": chosen, "tuned": held_out}


def budgeted(case: Case, has_controls: bool) -> dict[str, Any]:
    """Held-out rewards of a head of 512 rollouts at each of three budgets, and of its controls."""
    [policy] = case.heads([1536]).values()
    found = {"head": by_budget(case.task, policy)}
    if has_controls:
        for name, control in controls(policy, case, BUDGETS[case.task]).items():
            found[name] = by_budget(case.task, control)
    return found


def controls(policy: Policy, case: Case, longest: Sequence[int], samples: int = 1) -> dict[str, Policy]:
    """Made of what a policy chooses on tuning prompts."""
    made, space, level = choices(case.task, policy, longest, samples), policy.space, policy.segmenter
    return {
        "mean shift": MeanShift(space, made), "shuffle": Shuffle(space, level, made),
        "shuffle within bins": Shuffle(space, level, made, binned=True),
    }  # fmt: skip


def parallel() -> Iterator[Job]:
    """Sequence level under parallel budgets, best of B, on mixtures."""
    more, level = {"level": "sequence", "parallel": list(TOGETHER)}, parse_level("sequence")
    seen = SEEN | {"with the budget": ("hidden", "samples")}
    for task, where in (("mixture", "parallel"), (BOTH, f"parallel/{BOTH}")):
        for seed in SEEDS:
            for name, features in seen.items():
                case = Case(task, seed, SIX, more | {"features": features})
                yield Job(f"{where}/{name} {seed}", task, seed, partial(together, case, name == "with the budget"))
        fixed = {f"constant {k}": ConstantPolicy(SIX, k) for k in range(SIX.K)} | {"uniform mixture": UniformPolicy(SIX, level)}
        for name, policy in fixed.items():
            yield Job(f"{where}/{name}", task, 0, partial(on_both, task, policy))
        yield Job(f"{where}/TURN", task, 0, lambda task=task: {"held out": best_of(task, turn(task))})


def on_both(task: str, policy: Policy) -> dict[str, Any]:
    """`best_of` on tuning and on held-out prompts."""
    return {split: best_of(task, policy, split=split) for split in ("held out", "tuning")}


def together(case: Case, has_controls: bool) -> dict[str, Any]:
    """Held-out rewards of a head of 1,536 rollouts for each B, and of its controls."""
    [policy] = case.heads([1536]).values()
    found: dict[str, dict[str, Any]] = {}
    for B in TOGETHER:
        rivals = controls(policy, case, [longest_of(case.task)], B) if has_controls else {}
        for name, one in ({"head": policy} | rivals).items():
            found.setdefault(name, {}).update(best_of(case.task, one, B))
    return found


def best_of(task: str, policy: Policy, samples: int | None = None, split: str = "held out") -> dict[str, list[float]]:
    """By prompt, the mean best reward of groups of B among 8 responses, for each B or (`samples`) for one."""
    prompts = prompts_of(task, split, 96, 3)
    rollouts = roll_out(
        *lm(task), prompts, policy, copies=8, samples=samples or 8, max_new_tokens=longest_of(task), batch_size=256, seed=1001
    )
    rewards = torch.tensor(earned(task, prompts, rollouts, 8))
    sizes = TOGETHER if samples is None else (samples,)
    return {str(B): [float(group_rewards(reward_C, B, "best")[1].mean()) for reward_C in rewards] for B in sizes}


def ablations() -> Iterator[Job]:
    """The paper's: only the entropy is seen; sure tokens are masked; one head for mixed tasks."""
    changes = {"entropy": {"features": ("entropy",)}, "marginal mask": {"max_prob": 0.95},
               "score mask": {"estimator": "score", "max_prob": 0.95}}  # fmt: skip
    for seed in SEEDS:
        for task in (*TASKS, SO):
            for name, more in changes.items():
                case = Case(task, seed, TEMPERATURES, more)
                yield Job(f"ablations/{task} {name} {seed}", task, seed, partial(points_at, case, (512,), (task,)))
        for mixture, singles in (("mixture", ("constrained", "stories", "math")), (BOTH, (SO, SUMS))):
            case, where = Case(mixture, seed, TEMPERATURES, {}), "mixed" if mixture == "mixture" else f"{mixture} mixed"
            yield Job(f"ablations/{where} {seed}", mixture, seed, partial(points_at, case, (512, 1536), singles))
        for task in ("stories", SUMS):  # of which there are no curves
            case = Case(task, seed, TEMPERATURES, {})
            yield Job(f"ablations/{task} {seed}", task, seed, partial(points_at, case, (512,), (task,)))


def points_at(case: Case, sizes: Sequence[int], tasks: Sequence[str]) -> dict[int, Any]:
    """Held-out rewards by rollouts and task."""
    return {size: {task: judged(task, policy) for task in tasks} for size, policy in case.heads(sizes).items()}


PARTS = {
    "rivals": rivals, "variance": variance, "tokens": tokens, "parallel": parallel, "ablations": ablations, "curves": curves,
}  # fmt: skip


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice([*PARTS, "tables"]))
@click.option("--task", multiple=True, help="Only these tasks.")
@click.option("--seed", multiple=True, type=int, help="Only these training seeds; 0: what needs no training.")
@click.option("--only", default="", help="Only results with this in their name, such as 'marginal 0.01'.")
def main(parts: tuple[str, ...], task: tuple[str, ...], seed: tuple[int, ...], only: str) -> None:
    """Runs what is not finished, then prints the tables."""
    for part in parts or PARTS:
        for job in PARTS[part]() if part in PARTS else ():
            path = OUT / f"{job.name.replace(' ', '_')}.json"
            wanted = (job.task in task if task else job.task not in INSTRUCT or has_instruct()) and (not seed or job.seed in seed)
            if wanted and only in job.name and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".partial").write_text(json.dumps(job.make()), encoding="utf-8")
                path.with_suffix(".partial").replace(path)
                print(job.name, flush=True)
    if not (task or seed or only):
        tables(TASKS, WITH_STORIES, SO)


if __name__ == "__main__":
    main()
