"""Tables and plots of docs/reinforce-results.md, from the files of `python -m benchmarks.reinforce`; what is missing is empty."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import stdtrit

from latentknobs.evaluation.statistics import Interval, estimate, holm

OUT, IMAGES = Path("runs/reinforce"), Path("docs/images")
SIZES, SEEDS, RATES = ("256", "512", "1024", "2048"), range(1, 6), ("0.003", "0.01", "0.03")
LEARNERS = ("score", "marginal", "lpo")
COLOURS = ("#b4471f", "#23211e", "#8a837a", "#4d7a8c", "#b99a3c", "#7d5a86", "#5d8a54", "#c98c8c")
Rewards = NDArray[np.float64]  # (seeds, prompts)


def read(name: str) -> Any:
    """A result, None where there is none."""
    path = OUT / f"{name.replace(' ', '_')}.json"
    return json.loads(path.read_text()) if path.exists() else None


def by_seed(name: str, *parts: Any) -> Rewards | None:
    """(R, P) of the seeds that are there, of one part of each result; without seeds (1, P)."""
    found = [one for seed in SEEDS if (one := read(f"{name} {seed}")) is not None] or [one for one in [read(name)] if one]
    for part in parts:
        found = [one[part] for one in found if isinstance(one, list) or part in one]
    return np.array(found, dtype=float) if found else None


def row(*cells: Any) -> None:
    """A line of a table in Markdown."""
    print("| " + " | ".join(map(str, cells)) + " |")


def head(*cells: str) -> None:
    """The first two lines of one."""
    print()
    row(*cells)
    row(*["---"] * len(cells))


def difference(ours: Rewards, theirs: Rewards) -> Interval:
    """Paired by prompt and, where both were trained, by seed."""
    seeds = min(len(ours), len(theirs)) if len(theirs) > 1 else len(ours)
    return estimate(ours[:seeds] - (theirs[:seeds] if len(theirs) > 1 else theirs))


def shown(interval: Interval) -> str:
    """The mean and its ends."""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def gain(ours: Rewards | None, theirs: Rewards | None) -> str:
    """The same as text, empty where one is missing."""
    return "" if ours is None or theirs is None else shown(difference(ours, theirs))


def runs(task: str, learner: str) -> dict[int, dict[str, Any]]:
    """By seed, results by learning rate; only seeds that have all of them."""
    if learner == "lpo":
        found = {seed: read(f"curves/{task} lpo {seed}") for seed in SEEDS}
        return {seed: rates for seed, rates in found.items() if rates}
    by_rate = {seed: {rate: read(f"curves/{task} {learner} {rate} {seed}") for rate in RATES} for seed in SEEDS}
    return {seed: rates for seed, rates in by_rate.items() if all(rates.values())}


def tuned(found: Mapping[int, Mapping[str, Any]], size: str) -> tuple[dict[int, Any], Counter[str]]:
    """By seed (P,) on held-out prompts, each at the rate that the other seeds find best on tuning prompts; how often which."""
    chosen = {}
    for seed in found:
        others = [one for other, one in found.items() if other != seed] or [*found.values()]
        chosen[seed] = max(found[seed], key=lambda rate: np.mean([one[rate][size]["tuning"] for one in others]))
    return {seed: found[seed][rate][size]["held out"] for seed, rate in chosen.items()}, Counter(chosen.values())


def shared(ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> str:
    """The gain over the seeds that both have."""
    seeds = sorted(ours.keys() & theirs.keys())
    return f"{gain(*(np.array([one[seed] for seed in seeds]) for one in (ours, theirs)))}, {len(seeds)} seeds" if seeds else ""


def curves(tasks: Sequence[str]) -> None:
    """Rewards by rollouts, gains, and the plot."""
    figure = Figure(figsize=(2.1 * len(tasks), 2.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(tasks)))
    held_out: dict[tuple[str, str, str], dict[int, Any]] = {}
    head("task", "learner", *(f"{size} rollouts" for size in SIZES), "learning rates of the seeds, by rollouts")
    for axis, task in zip(axes, tasks, strict=True):
        for learner, colour in zip(LEARNERS, (COLOURS[2], COLOURS[0], COLOURS[1]), strict=True):
            if not (found := runs(task, learner)):
                continue
            sizes = [size for size in SIZES if all(size in one for rates in found.values() for one in rates.values())]
            both = {size: tuned(found, size) for size in sizes}
            held_out |= {(task, learner, size): rewards for size, (rewards, _) in both.items()}
            points = [estimate(np.array([*rewards.values()])) for rewards, _ in both.values()]
            rates = ["/".join(f"{rate} x{n}" for rate, n in count.most_common()) for _, count in both.values()]
            row(task, f"{learner}, {len(found)} seeds", *points, *[""] * (len(SIZES) - len(sizes)), "; ".join(rates))
            means = np.array([point.mean for point in points])
            ends = [means - [point.low for point in points], [point.high for point in points] - means]
            axis.errorbar([int(size) for size in sizes], means, ends, fmt="o-", capsize=2, color=colour, label=learner, ms=3)
        constants = [one for k in range(11) if (one := read(f"rivals/{task} constant {k}"))]
        if len(constants) == 11:
            best = int(np.argmax([one["tuning"] for one in constants]))
            print(f"| {task} | best constant on tuning prompts, option {best} | {estimate(constants[best]['held out'])} |")
            axis.axhline(
                np.mean(constants[best]["held out"]), color=COLOURS[2], linewidth=1, linestyle=":", label="tuned constant"
            )
        axis.set(title=task, xscale="log", xlabel="rollouts", xticks=[int(size) for size in SIZES], xticklabels=SIZES)
        axis.minorticks_off()
        axis.tick_params(labelsize=7)
    head("task", "marginal over", *(f"{size} rollouts" for size in SIZES))
    for task in tasks:
        for other in ("score", "lpo"):
            ours, theirs = ([held_out.get((task, name, size), {}) for size in SIZES] for name in ("marginal", other))
            row(task, other, *map(shared, ours, theirs))
    head("task", "by seed, 512 rollouts")
    for (task, learner, size), rewards in held_out.items():
        if size == "512":
            row(task, learner, ", ".join(f"{np.mean(value_P):.3f}" for value_P in rewards.values()))
    axes[0].set_ylabel("held-out reward")
    axes[0].legend(frameon=False, fontsize=7)
    save(figure, "reinforce.png")


def at_equal_rates(tasks: Sequence[str]) -> None:
    """Marginal over score at each learning rate, over the seeds that both have."""
    head("task", "learning rate", *(f"{size} rollouts" for size in SIZES))
    for task, rate in ((task, rate) for task in tasks for rate in RATES):
        found = [{seed: one for seed in SEEDS if (one := read(f"curves/{task} {name} {rate} {seed}"))}
                 for name in ("marginal", "score")]  # fmt: skip
        both = [[{seed: one[size]["held out"] for seed, one in runs.items() if size in one} for runs in found] for size in SIZES]
        row(task, rate, *(shared(*pair) for pair in both))


def save(figure: Figure, name: str) -> None:
    """A plot of the page."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name, dpi=160)


def variance(tasks: Sequence[str]) -> None:
    """Traces of the gradient's covariance, score over marginal, with the jackknife's interval over batches."""
    head("task", "at the start", "after 512 rollouts")
    for task in tasks:
        found = [read(f"variance/{task} {when}") for when in ("start", "later")]
        row(task, *("" if one is None else ratio(*(np.array(one[name]) for name in ("score", "marginal"))) for one in found))


def ratio(score_BB: NDArray[np.float64], marginal_BB: NDArray[np.float64]) -> str:
    """Of traces, from the inner products of the gradients of B batches."""
    B = len(score_BB)

    def log_ratio(kept: Any) -> float:
        some = [gram[np.ix_(kept, kept)] for gram in (score_BB, marginal_BB)]
        traces = [np.trace(gram) - gram.sum() / len(kept) for gram in some]
        return float(np.log(traces[0] / traces[1]))

    left_out = np.array([log_ratio(np.delete(np.arange(B), b)) for b in range(B)])
    half = stdtrit(B - 1, 0.975) * np.sqrt((B - 1) / B * ((left_out - left_out.mean()) ** 2).sum())
    middle = log_ratio(np.arange(B))
    return f"{np.exp(middle):.1f} [{np.exp(middle - half):.1f}, {np.exp(middle + half):.1f}]"


Policies = Mapping[str, Sequence[Rewards | None]]  # by name, at each budget


def compare(tables: Sequence[tuple[str, Sequence[str], Policies]], ours: str) -> None:
    """Tables of policies at some budgets, and what one gains over each; p is corrected (Holm) over all of them."""
    gains = {
        (title, name): [difference(mine, one) for mine, one in zip(policies[ours], found, strict=True)]  # type: ignore[arg-type]
        for title, _, policies in tables
        for name, found in policies.items()
        if name != ours and all(one is not None for one in (*found, *policies[ours]))
    }
    corrected = iter(holm([interval.p for each in gains.values() for interval in each]))
    for title, points, policies in tables:
        head(title, *points, *(f"{ours}, over it: {point}" for point in points))
        for name, found in policies.items():
            if all(one is not None for one in found):
                means = [f"{one.mean():.3f}" for one in found if one is not None]
                row(name, *means, *(f"{shown(one)}, p {next(corrected):.2g}" for one in gains.get((title, name), ())))


def plot(axis: Any, points: Sequence[int], policies: Policies) -> None:
    """Means against a budget, with intervals for what was trained."""
    for colour, (name, found) in zip(COLOURS * 2, policies.items(), strict=False):
        if all(one is not None for one in found):
            intervals = [estimate(one) for one in found if one is not None]
            means = np.array([one.mean for one in intervals])
            style = "o-" if found[0] is not None and len(found[0]) > 1 else ".--"
            axis.plot(points, means, style, color=colour, label=name, ms=4, linewidth=1)
    axis.set(xscale="log", xticks=points, xticklabels=map(str, points))
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=6)


def budgets() -> None:
    """Token and parallel budgets, and their plot."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    heads = ("with the budget", "without it", "statistics")
    shuffled = ("mean shift", "shuffle", "shuffle within bins")
    tables: list[tuple[str, Sequence[str], Policies]] = []
    for task, sizes in (("mixture", (16, 32, 64)), ("math", (16, 20, 24)), ("smollm2 so", (16, 32, 48))):
        found = {name: [by_seed(f"tokens/{task} {name}", "head", n) for n in range(3)] for name in heads}
        found |= {name: [by_seed(f"tokens/{task} {heads[0]}", name, n) for n in range(3)] for name in shuffled}
        found |= {name: [by_seed(f"tokens/{task} constants", name, n) for n in range(3)] for name in ("greedy", "tuned")}
        found |= {name: [by_seed(f"tokens/{task} {name}", n) for n in range(3)] for name in ("uniform mixture", "TURN")}
        tables.append((f"{task}, tokens", [str(size) for size in sizes], found))
        print((read(f"tokens/{task} constants") or {}).get("chosen"))
        if task == "mixture":
            plot(axes[0], sizes, found)
    for title, where in (("best of B, mixture", "parallel"), ("best of B, smollm2 mixture", "parallel/smollm2 mixture")):
        tables.append((title, ["1", "4", "8"], together(where, heads, shuffled)))
    for is_instruct in (False, True):  # two pages, two corrections
        compare([table for table in tables if table[0].startswith(("smollm2", "best of B, smollm2")) == is_instruct], heads[0])
    plot(axes[1], (1, 4, 8), tables[-2][2])
    axes[0].set(xlabel="token budget", ylabel="held-out reward", title="token level")
    axes[1].set(xlabel="B", ylabel="held-out best of B", title="sequence level")
    save(figure, "reinforce-budgets.png")


def together(where: str, heads: Sequence[str], shuffled: Sequence[str]) -> Policies:
    """Policies at B = 1, 4 and 8."""
    sizes = ("1", "4", "8")
    found = {name: [by_seed(f"{where}/{name}", "head", B) for B in sizes] for name in heads}
    found |= {name: [by_seed(f"{where}/{heads[0]}", name, B) for B in sizes] for name in shuffled}
    constants = [one for k in range(6) if (one := read(f"{where}/constant {k}"))]
    if len(constants) == 6:
        best = {B: int(np.argmax([np.mean(one["tuning"][B]) for one in constants])) for B in sizes}
        found["greedy"] = [np.array([constants[0]["held out"][B]]) for B in best]
        found["tuned"] = [np.array([constants[k]["held out"][B]]) for B, k in best.items()]
        print(where, best)
    return found | {name: [by_seed(f"{where}/{name}", "held out", B) for B in sizes] for name in ("uniform mixture", "TURN")}


def ablations(tasks: Sequence[str]) -> None:
    """Against the head of the curves at the same learning rate (the default) and after as many rollouts."""
    head("task", "change", "held-out reward, 512 rollouts", "over the same without the change")
    for task in tasks:
        plain = {name: by_seed(f"curves/{task} {name} 0.01", "512", "held out") for name in ("marginal", "score")}
        for change, base in (("entropy", "marginal"), ("marginal mask", "marginal"), ("score mask", "score")):
            found, before = by_seed(f"ablations/{task} {change}", "512", task), plain[base]
            if found is not None and before is not None:
                row(task, change, estimate(found), gain(found, before[: len(found)]))
    head("task", "mixed, 512 rollouts", "mixed, 1,536", "its own, 512", "mixed 1,536 over its own")
    mixtures = (("mixed", ("constrained", "stories", "math")), ("smollm2 mixture mixed", ("smollm2 so", "smollm2 sums")))
    for where, task in ((where, task) for where, singles in mixtures for task in singles):
        single = by_seed(f"ablations/{task}", "512", task)
        single = by_seed(f"curves/{task} marginal 0.01", "512", "held out") if single is None else single
        mixed = [by_seed(f"ablations/{where}", size, task) for size in ("512", "1536")]
        if single is not None and all(one is not None for one in mixed):
            row(task, *(estimate(one) for one in (*mixed, single) if one is not None), gain(mixed[1], single))


def tables(tasks: Sequence[str], more: Sequence[str], instruct: str) -> None:
    """Everything that is there; `more` are the tasks of the curves, `instruct` one of an instruct model."""
    curves(more)
    at_equal_rates(more)
    variance([*tasks, instruct])
    budgets()
    ablations([*tasks, instruct])
