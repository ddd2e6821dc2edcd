"""The token heat map as a picture, for a README or a slide: a few responses in a fixed-width grid of characters."""

import io
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from latentknobs.errors import ConfigError
from latentknobs.reporting.colours import Scale
from latentknobs.reporting.console import coloured, legend
from latentknobs.reporting.samples import Sample, Samples, read_samples

COLUMNS = 96  # characters in a line
SIZE, STEP, MARGIN = 9.0, 15.0, 14.0  # font size, line height and margin, in points
ADVANCE = 0.602 * SIZE  # width of a character of DejaVu Sans Mono, which matplotlib brings along
INK, MUTED = "#23211e", "#8a837a"
KINDS = (".png", ".svg", ".pdf")
GRID = Console(file=io.StringIO(), width=COLUMNS, color_system="truecolor")  # lays text out; shows nothing


def write_picture(run: str | Path, path: str | Path, per_task: int = 1) -> Path:
    """Draws the first responses of each task of a run and returns `path`.

    Raises:
        ConfigError: the file's ending is not png, svg or pdf, or it cannot be written.
        RunError: the run has no samples.
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise ConfigError(f"The picture {str(path)!r} must end in {', '.join(KINDS)}.")
    samples = read_samples(Path(run))
    scale = Scale.of(samples.knobs[0], samples.options)
    lines = [(line, INK) for line in [*wrap(legend(scale)), Text()]]
    for task in sorted({sample.task for sample in samples.shown}):
        for sample in [s for s in samples.shown if s.task == task][:per_task]:
            lines += [(line, MUTED) for line in wrap(Text(sample.text))]
            lines += [(line, INK) for line in [*wrap(_response(sample, samples, scale)), Text()]]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": "DejaVu Sans Mono", "svg.hashsalt": "latentknobs"}):
        dated = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(lines[:-1]).savefig(path, dpi=160, metadata=dated)
        except OSError as error:
            raise ConfigError(f"The picture {str(path)!r} cannot be written: {error.strerror}. Choose another file.") from None
    return path


def wrap(text: Text, columns: int = COLUMNS) -> list[Text]:
    """Lines of at most `columns` characters, broken at line breaks and before words that do not fit; none is empty."""
    return [line for line in text.wrap(GRID, columns) if line.plain.strip()]


def runs(line: Text) -> Iterator[tuple[int, int, str]]:
    """Neighbouring characters on one colour as (first, one after the last, colour)."""
    start = 0
    for colour, segments in groupby(line.render(GRID), _background):
        end = start + sum(segment.cell_length for segment in segments)
        if colour:
            yield start, end, colour
        start = end


def _background(segment: Segment) -> str:
    colour = segment.style.bgcolor if segment.style else None
    return colour.get_truecolor().hex if colour else ""


def _response(sample: Sample, samples: Samples, scale: Scale) -> Text:
    pieces = [(piece, k) for piece, special, k in zip(sample.pieces, sample.special, sample.options, strict=True) if not special]
    return coloured([piece for piece, _ in pieces], [samples.options[k][scale.knob] for _, k in pieces], scale)


def _draw(lines: list[tuple[Text, str]]) -> Figure:
    width, height = 2 * MARGIN + COLUMNS * ADVANCE, 2 * MARGIN + len(lines) * STEP
    figure = Figure(figsize=(width / 72, height / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for row, (line, ink) in enumerate(lines):
        top = MARGIN + row * STEP
        for start, stop, colour in runs(line):
            place, extent = (MARGIN + start * ADVANCE, top), (stop - start) * ADVANCE
            axes.add_patch(Rectangle(place, extent, STEP - 1.5, color=colour, linewidth=0))
        axes.text(MARGIN, top + 0.68 * STEP, line.plain, fontsize=SIZE, color=ink, va="baseline")
    return figure
