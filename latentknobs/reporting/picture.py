"""The token heat map as a picture, for a README or a slide: a few responses in a fixed-width grid of characters."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from latentknobs.errors import ConfigError
from latentknobs.reporting.colours import Scale
from latentknobs.reporting.samples import Sample, Samples, read_samples

COLUMNS = 96  # characters in a line
SIZE, STEP, MARGIN = 9.0, 15.0, 14.0  # font size, line height and margin, in points
ADVANCE = 0.602 * SIZE  # width of a character of DejaVu Sans Mono, which matplotlib brings along
INK, MUTED = "#23211e", "#8a837a"
KINDS = (".png", ".svg", ".pdf")

Cell = tuple[str, str]  # a character and its background, "" for none


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
    lines: list[tuple[list[Cell], str]] = []
    for task in sorted({sample.task for sample in samples.shown}):
        for sample in [s for s in samples.shown if s.task == task][:per_task]:
            lines += [(line, MUTED) for line in wrap([(c, "") for c in sample.text])]
            lines += [(line, INK) for line in wrap(list(_cells(sample, samples, scale)))] + [([], INK)]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": "DejaVu Sans Mono", "svg.hashsalt": "latentknobs"}):
        dated = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(lines[:-1], scale).savefig(path, dpi=160, metadata=dated)
        except OSError as error:
            raise ConfigError(f"The picture {str(path)!r} cannot be written: {error.strerror}. Choose another file.") from None
    return path


def wrap(cells: list[Cell], columns: int = COLUMNS) -> list[list[Cell]]:
    """Lines of at most `columns` cells, broken at line breaks and before words that do not fit."""
    lines: list[list[Cell]] = [[]]
    for word in _words(cells):
        if word[0][0] == "\n":
            lines.append([])
            continue
        if len(lines[-1]) + len(word) > columns and lines[-1]:
            lines.append([])
            word = word[1:] if word[0][0] == " " else word
        while word:
            room = columns - len(lines[-1])
            lines[-1] += word[:room]
            word = word[room:]
            if word:
                lines.append([])
    return [line for line in lines if line]


def _words(cells: list[Cell]) -> Iterator[list[Cell]]:
    """Runs of cells, each with the space before it; a line break stands alone."""
    word: list[Cell] = []
    for cell in cells:
        if cell[0] in " \n" and word:
            yield word
            word = []
        word.append(cell)
        if cell[0] == "\n":
            yield word
            word = []
    if word:
        yield word


def _cells(sample: Sample, samples: Samples, scale: Scale) -> Iterator[Cell]:
    for piece, special, k in zip(sample.pieces, sample.special, sample.options, strict=True):
        if not special:
            yield from ((character, scale.solid(samples.value(scale.knob, k))) for character in piece)


def _draw(lines: list[tuple[list[Cell], str]], scale: Scale) -> Figure:
    width, height = 2 * MARGIN + COLUMNS * ADVANCE, 2 * MARGIN + (len(lines) + 2) * STEP
    figure = Figure(figsize=(width / 72, height / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    key: list[Cell] = [(c, "") for c in f"{scale.knob} "]
    for value in scale.values:
        key += [(" ", ""), *((c, scale.solid(value)) for c in f" {value:g} ")]
    for row, (line, ink) in enumerate([(key, INK), ([], INK), *lines]):
        top = MARGIN + row * STEP
        for start, stop, colour in _runs(line):
            axes.add_patch(
                Rectangle((MARGIN + start * ADVANCE, top), (stop - start) * ADVANCE, STEP - 1.5, color=colour, linewidth=0)
            )
        axes.text(MARGIN, top + 0.68 * STEP, "".join(c for c, _ in line), fontsize=SIZE, color=ink, va="baseline")
    return figure


def _runs(line: list[Cell]) -> Iterator[tuple[int, int, str]]:
    """Neighbouring cells of one colour as (first, one after the last, colour)."""
    start = 0
    for end in range(1, len(line) + 1):
        if end == len(line) or line[end][1] != line[start][1]:
            if line[start][1]:
                yield start, end, line[start][1]
            start = end
