"""The plot of `latentknobs strategies`: coverage against the number of strategies."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

LABELS = ("greedy coverage, prompts that chose", "greedy coverage, other prompts", "best N by mean reward, other prompts")
STYLES = (("#8a837a", ":"), ("#b4471f", "-"), ("#23211e", "--"))


def write_coverage(rows: Sequence[tuple[str, float, float, float]], path: Path) -> Path:
    """Draws the rows of `Strategies.rows`, and returns `path`."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for (colour, line), label, values in zip(STYLES, LABELS, list(zip(*rows, strict=True))[1:], strict=True):
        axes.plot(range(1, len(rows) + 1), values, line, marker="o", markersize=3, color=colour, label=label)
    axes.set(xlabel="strategies N", ylabel="mean of the best reward of N", xticks=range(1, len(rows) + 1))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)
    return path
