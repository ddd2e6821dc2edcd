"""The tables and the plot of docs/reinforce.md, from the files of `python -m benchmarks.reinforce`; what is missing is empty."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from latentknobs.evaluation.statistics import estimate

OUT, PLOT = Path("runs/reinforce"), Path("docs/images/reinforce.png")
LEARNERS, BASELINES = ("score", "marginal", "lpo"), ("tuned constant", "uniform mixture")
COLOURS = {"score": "#8a837a", "marginal": "#b4471f", "lpo": "#23211e"}
Rewards = NDArray[np.float64]  # (seeds, prompts)


def read(name: str) -> Any:
    """A result, None where there is none."""
    path = OUT / f"{name.replace(' ', '_')}.json"
    return json.loads(path.read_text()) if path.exists() else None


def by_seed(name: str, part: Any = None) -> Rewards | None:
    """(R, P) of the seeds that are there, copies averaged; of a dictionary or a list one part."""
    found = [read(f"{name} {seed}") for seed in range(1, 10)]
    values = [one if part is None else one[part] for one in found if one is not None]
    return np.stack([_prompts(value) for value in values]) if values else None


def _prompts(value: Any) -> Rewards:
    array = np.asarray(value, dtype=float)
    return array.mean(-1) if array.ndim == 2 else array


def row(*cells: Any) -> None:
    """A line of a table in Markdown."""
    print("| " + " | ".join(map(str, cells)) + " |")


def head(*cells: str) -> None:
    """The first two lines of one."""
    print()
    row(*cells)
    row(*["---"] * len(cells))


def gain(ours: Rewards | None, theirs: Rewards | None) -> str:
    """Paired by prompt and, where both have as many, by seed."""
    if ours is None or theirs is None:
        return ""
    seeds = min(len(ours), len(theirs)) if len(theirs) > 1 else len(ours)
    interval = estimate(ours[:seeds] - (theirs[:seeds] if len(theirs) > 1 else theirs))
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def curves(tasks: Sequence[str]) -> None:
    """Rewards by rollouts, gains, and the plot."""
    head(
        "task",
        "learner",
        "rollouts",
        "seeds",
        "held-out reward",
        "over score, equal rollouts",
        "over LPO, 512",
        "over LPO, 2,048",
    )
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tasks)))
    for axis, task in zip(axes, tasks, strict=True):
        for learner in LEARNERS:
            points = []
            for size in ("256", "512", "2048"):
                name, found = f"curves/{task} {learner}", None
                if size in (read(f"{name} 1") or {}):
                    found = by_seed(name, size)
                if found is None:
                    continue
                interval = estimate(found)
                points.append((int(size), interval))
                scores = by_seed(f"curves/{task} score", size) if learner == "marginal" else None
                others = [by_seed(f"curves/{task} lpo", n) if learner != "lpo" else None for n in ("512", "2048")]
                row(task, learner, size, len(found), interval, gain(found, scores), *(gain(found, one) for one in others))
            if points:
                low, high = ([getattr(i, end) for _, i in points] for end in ("low", "high"))
                sizes, means = [n for n, _ in points], [i.mean for _, i in points]
                axis.errorbar(sizes, means, [np.subtract(means, low), np.subtract(high, means)], fmt="o-", capsize=2,
                              color=COLOURS[learner], label=learner, markersize=3)  # fmt: skip
        constants = [read(f"rivals/{task} constant {k}") for k in range(6)]
        tuning = [read(f"tuning/{task} constant {k}") for k in range(6)]
        if all(value is not None for value in (*constants, *tuning)):
            best = int(np.argmax(tuning))
            row(task, f"constant tuned on training prompts, {best}", 0, 1, estimate(_prompts(constants[best])), "", "", "")
            axis.axhline(_prompts(constants[best]).mean(), color="#8a837a", linewidth=1, linestyle=":", label="tuned constant")
        axis.set(title=task, xscale="log", xlabel="rollouts", xticks=[256, 512, 2048], xticklabels=["256", "512", "2,048"])
        axis.minorticks_off()
    axes[0].set_ylabel("held-out reward")
    axes[0].legend(frameon=False, fontsize=7)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=160)


def variance(tasks: Sequence[str]) -> None:
    """Traces of the gradient's covariance, score over marginal."""
    head("task", "at the start", "after 512 rollouts")
    for task in tasks:
        found = [read(f"variance/{task} {when}") for when in ("start", "later")]
        row(task, *("" if one is None else f"{one['ratio']:.1f}" for one in found))


def tokens() -> None:
    """Heads and rivals under each token budget."""
    names = {"tokens/with the budget": "head", "tokens/without it": "head", "tokens/statistics": "head"}
    ours = [by_seed_at("tokens/with the budget", "head", n) for n in range(3)]
    head("policy", "16 tokens", "32", "64", "the head with the budget, over it: 16", "32", "64")
    for name, part in names.items():
        line(name.partition("/")[2], [by_seed_at(name, part, n) for n in range(3)], ours)
    for part in ("mean shift", "shuffle", "shuffle within bins"):
        line(f"its {part}", [by_seed_at("tokens/with the budget", part, n) for n in range(3)], ours)
    constants = [one for k in range(4) if (one := read(f"tokens/constant {k}"))]
    if len(constants) == 4:
        best = [int(np.argmax([one["tuning"][n] for one in constants])) for n in range(3)]
        line(f"constants tuned at each budget: options {best}", [
            _prompts(constants[best[n]]["held out"][n])[None] for n in range(3)], ours)  # fmt: skip
    for name in ("uniform mixture", "TURN"):
        found = read(f"tokens/{name}")
        line(name, [None if found is None else _prompts(found[n])[None] for n in range(3)], ours)


def by_seed_at(name: str, part: str, n: int) -> Rewards | None:
    """Of budget n."""
    found = [one[part][n] for seed in range(1, 10) if (one := read(f"{name} {seed}")) and part in one]
    return np.stack([_prompts(value) for value in found]) if found else None


def line(name: str, found: Sequence[Rewards | None], ours: Sequence[Rewards | None]) -> None:
    """A row of means and of paired gains."""
    if any(one is not None for one in found):
        means = ["" if one is None else f"{one.mean():.3f}" for one in found]
        row(name, *means, *("" if one is mine else gain(mine, one) for one, mine in zip(found, ours, strict=True)))


def parallel() -> None:
    """Heads and rivals at each B."""
    sizes = ("1", "4", "8")

    def heads(name: str) -> list[Rewards | None]:
        runs = [one for seed in range(1, 10) if (one := read(f"parallel/{name} {seed}"))]
        return [np.stack([_prompts(one[n][B]) for one in runs]) if runs else None for n, B in enumerate(sizes)]

    ours = heads("with the budget")
    head("policy", "B = 1", "4", "8", "the head with the budget, over it: 1", "4", "8")
    line("with the budget", ours, ours)
    line("without it", heads("without it"), ours)
    constants = [one for k in range(6) if (one := read(f"parallel/constant {k}"))]
    if len(constants) == 6:
        best = {B: int(np.argmax([np.mean(one["tuning"][B]) for one in constants])) for B in sizes}
        line(f"strategies tuned at each B: {list(best.values())}", [
            _prompts(constants[best[B]]["held out"][B])[None] for B in sizes], ours)  # fmt: skip
    if found := read("parallel/uniform mixture"):
        line("uniform mixture", [_prompts(found[B])[None] for B in sizes], ours)


def tables(tasks: Sequence[str]) -> None:
    """Everything that is there."""
    curves(tasks)
    variance(tasks)
    tokens()
    parallel()
