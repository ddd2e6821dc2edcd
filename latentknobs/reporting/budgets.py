"""Reward against token budgets and parallel budgets, where a run trained for several."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import BaseModel

from latentknobs.errors import RunError
from latentknobs.evaluation.report import HEAD, Report
from latentknobs.evaluation.statistics import estimate
from latentknobs.files import read_json
from latentknobs.reporting import svg

FILE = "evaluation/budgets.json"
BEST = "best constant in hindsight"
STYLES = ((0, ()), (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


class Curves(BaseModel):
    """What each policy earns: for G budgets (tokens, samples) by policy G lists of P prompts, None where a reward failed."""

    budgets: list[tuple[int, int]]
    rewards: dict[str, list[list[float | None]]]


class Panel(NamedTuple):
    """Budgets that differ in one part: its size and the place of the budget, by size."""

    title: str
    label: str
    points: list[tuple[int, int]]


def draw_budgets(run: Path, report: Report) -> Markup | None:
    """Mean reward of the head, the tuned constant, the best constant at each budget and what needs no learning; None without.

    Raises:
        RunError: the file is damaged.
    """
    cure = "Delete it to do without these curves."
    if not (run / FILE).exists():
        return None
    curves: Curves = read_json(run / FILE, Curves, RunError, cure)
    G, lengths = len(curves.budgets), {len(one) for value_GP in curves.rewards.values() for one in value_GP}
    if HEAD not in curves.rewards or len(lengths) != 1 or any(len(value_GP) != G for value_GP in curves.rewards.values()):
        raise RunError(f"{str(run / FILE)!r} is damaged: its lists do not fit each other. {cure}")
    reward_CGP = np.array(list(curves.rewards.values()), dtype=float)
    reward_CGP[:, ~np.isfinite(reward_CGP).all(0)] = np.nan  # a prompt counts for all policies or for none
    if np.isnan(reward_CGP).all((0, 2)).any():
        return None  # under some budget the reward failed everywhere
    found = dict(zip(curves.rewards, reward_CGP, strict=True))
    constants = [name for name in found if name in report.tuning]
    shown = {name: value_GP for name, value_GP in found.items() if name not in constants or name == report.tuned}
    if constants:
        mean_KG = np.nanmean([found[name] for name in constants], axis=-1)
        shown[BEST] = np.stack([found[constants[k]][g] for g, k in enumerate(mean_KG.argmax(0))])
    panels = panels_of(curves.budgets)

    def draw() -> Figure:
        figure, axes = svg.panels(len(panels), 2.6)
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel, shown)
        axes[0].set_ylabel("mean reward")
        axes[0].legend(loc="best", fontsize=7, labelcolor=svg.MUTED)
        return figure

    return svg.svg("budgets", "Mean reward of the head and of its rivals against the budgets", draw) if panels else None


def panels_of(budgets: Sequence[tuple[int, int]]) -> list[Panel]:
    """One panel for each B with several token budgets, and one for each token budget with several B."""
    found = []
    for part, label, word in ((0, "longest response, tokens", "B = {}"), (1, "responses together, B", "{} tokens")):
        others = sorted({one[1 - part] for one in budgets})
        for other in others:
            points = sorted((one[part], g) for g, one in enumerate(budgets) if one[1 - part] == other)
            if len(points) > 1:
                found.append(Panel(word.format(other) if len(others) > 1 else "", label, points))
    return found


def _draw(axis: Axes, panel: Panel, shown: Mapping[str, NDArray[np.float64]]) -> None:
    sizes, places = zip(*panel.points, strict=True)
    for n, (name, value_GP) in enumerate(shown.items()):
        intervals = [estimate(value_GP[g][np.isfinite(value_GP[g])]) for g in places]
        mean_G = np.array([one.mean for one in intervals])
        colour = svg.HEAD if name == HEAD else svg.INK if name == BEST else svg.LINE
        style = STYLES[n % len(STYLES)]
        axis.plot(sizes, mean_G, marker="o", color=colour, linestyle=style, markersize=3, linewidth=1.2, label=name)
        if name == HEAD:
            axis.fill_between(sizes, [one.low for one in intervals], [one.high for one in intervals], color=colour, alpha=0.14)
    axis.set(xscale="log", xticks=sizes, xticklabels=[str(size) for size in sizes], title=panel.title, xlabel=panel.label)
    axis.minorticks_off()
