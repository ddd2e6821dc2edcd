"""Matplotlib figures as inline SVG that takes its colours and its font from the page, so that it follows light and dark."""

import io
import re
from collections.abc import Callable

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Each colour stands for a variable of the page's style sheet, put in its place after drawing.
INK, MUTED, GRID, HEAD, LINE, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
WIDTH = 8.6  # inches, of the whole figure
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", HEAD: "--head", LINE: "--base", PAPER: "--paper"}
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "text.color": INK, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": GRID,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0, "axes.titlelocation": "left",
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


def panels(count: int, height: float, *, sharex: bool = False, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels side by side, at most four in a row; the height is that of a row, in inches."""
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).ravel().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def svg(name: str, alt: str, draw: Callable[[], Figure]) -> Markup:
    """The figure that `draw` returns as an `<svg>` element that scales with the page.

    Args:
        name: keeps the ids inside apart from those of other figures on the page.
        alt: alternative text for screen readers.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        out = io.StringIO()
        draw().savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()[out.getvalue().index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d. ]*)([\d.]+)px [^;\"]*", r"font: \1\2px var(--sans)", text)
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    return Markup(re.sub(r'<svg( height="[^"]*"| width="[^"]*")*', lambda _: str(label), text, count=1))
