"""The plot of `latentknobs headroom`: what each kind of adapting adds to the best constant."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from latentknobs.evaluation.statistics import ALPHA, Interval

SHOWN, NOT_SHOWN = "#b4471f", "#8a837a"


def write_gains(rows: Sequence[tuple[str, Interval, float]], label: str, path: Path) -> Path:
    """Draws (name, gain, corrected p), and returns `path`; a gain that is not shown after correction is hollow and grey."""
    figure = Figure(figsize=(6.4, 0.7 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=NOT_SHOWN, linewidth=1, linestyle="--")
    for place, (_, gain, p) in enumerate(reversed(rows)):
        colour = SHOWN if p < ALPHA else NOT_SHOWN
        axes.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2)
        axes.plot(gain.mean, place, "o", color=colour, markerfacecolor=colour if p < ALPHA else "white", markersize=5)
    axes.set(
        yticks=np.arange(len(rows)), yticklabels=[name for name, *_ in reversed(rows)], xlabel=f"{label}, with 95 % intervals"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    return path
