"""The plots that commands write as files: coverage of `latentknobs strategies`, gains of `latentknobs headroom`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from latentknobs.evaluation.statistics import ALPHA, Interval

STRONG, WEAK, BLACK = "#b4471f", "#8a837a", "#23211e"
COVERAGES = {  # label: colour, line
    "greedy coverage, prompts that chose": (WEAK, ":"),
    "greedy coverage, other prompts": (STRONG, "-"),
    "best N by mean reward, other prompts": (BLACK, "--"),
}


def write_coverage(rows: Sequence[tuple[str, float, float, float]], path: Path) -> Path:
    """Draws the rows of `Strategies.rows`, coverage against the number of strategies, and returns `path`."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for (label, (colour, line)), values in zip(COVERAGES.items(), list(zip(*rows, strict=True))[1:], strict=True):
        axes.plot(range(1, len(rows) + 1), values, line, marker="o", markersize=3, color=colour, label=label)
    axes.set(xlabel="strategies N", ylabel="mean of the best reward of N", xticks=range(1, len(rows) + 1))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)
    return path


def write_gains(rows: Sequence[tuple[str, Interval, float]], label: str, path: Path) -> Path:
    """Draws (name, gain, corrected p), and returns `path`; a gain that is not shown after correction is hollow and grey."""
    figure = Figure(figsize=(6.4, 0.7 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=WEAK, linewidth=1, linestyle="--")
    for place, (_, gain, p) in enumerate(reversed(rows)):
        colour = STRONG if p < ALPHA else WEAK
        axes.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2)
        axes.plot(gain.mean, place, "o", color=colour, markerfacecolor=colour if p < ALPHA else "white", markersize=5)
    names = [name for name, *_ in reversed(rows)]
    axes.set(yticks=np.arange(len(rows)), yticklabels=names, xlabel=f"{label}, with 95 % intervals")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    return path
