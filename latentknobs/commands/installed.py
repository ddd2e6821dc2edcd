"""`latentknobs knobs|rewards|... list` and `check`: what is installed of each kind, and whether it keeps its contract.

A broken plugin is a row that says what is wrong with it. A kind can be checked where `latentknobs.conformance.KINDs` exists.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from latentknobs import entry_points
from latentknobs.errors import LatentKnobsError
from latentknobs.knobs.knob import DecodingKnob
from latentknobs.knobs.registry import knob_class, sources
from latentknobs.reporting.console import stdout

Row = tuple[str, str, Callable[[], tuple[str, ...]]]  # name, distribution and version, and what fills the other columns


def _command(kind: str, columns: tuple[str, ...], rows: Callable[[str], Iterable[Row]], *options: Any) -> click.Group:
    """The command group of a kind: its table has these columns beside name and distribution, `check` these options."""
    plural = entry_points.group_of(kind).partition(".")[2]

    @click.group(plural, help=f"The {plural} that are installed.")
    def group() -> None: ...

    @group.command("list", help=f"Every installed {kind}: its name, where it comes from, its settings and its meaning.")
    def list_all() -> None:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in (kind, "from", *columns):
            wraps = heading in ("default grid", "settings", "meaning")
            width = 24 if wraps and heading != "meaning" else None
            table.add_column(heading, no_wrap=not wraps, max_width=width, style="bold" if heading == kind else "")
        for name, source, about in rows(kind):
            try:
                cells: tuple[Any, ...] = about()
            except LatentKnobsError as error:
                cells = (*[""] * (len(columns) - 1), Text(f"broken: {error}", style="red"))
            table.add_row(name, source, *cells)
        stdout().print(table)

    if find_spec(f"latentknobs.conformance.{plural}") is not None:

        @group.command("check", help=f"Run the conformance suite on one {kind}, e.g. `latentknobs {plural} check NAME`.")
        @click.argument("name")
        def check(name: str, **settings: Any) -> None:
            text, is_good = import_module(f"latentknobs.conformance.{plural}").SUITE.report(name, **settings)
            click.echo(text)
            raise SystemExit(0 if is_good else 1)

        check.params += options

    return group


def meaning(documented: Any) -> str:
    """The first sentence of a docstring, without citations in brackets."""
    paragraph = " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.;]) ", re.sub(r" \([^()]*(?:arXiv|et al|pull request)[^()]*\)", "", paragraph))[0].rstrip(";.")


def _knobs(kind: str) -> Iterator[Row]:
    for source in sources():

        def about(full_name: str = source.full_name) -> tuple[str, ...]:
            knob: type[DecodingKnob] = knob_class(full_name)
            field = knob.model_fields["options"]
            grid = "none" if field.is_required() else ", ".join(f"{value:g}" for value in field.default)
            return knob.stage.value, f"{knob.neutral:g}", grid, meaning(knob)

        yield source.name, f"{source.distribution} {source.version}", about


def _entry_points(kind: str) -> Iterator[Row]:
    for point in entry_points.points(kind):

        def about(name: str = point.name) -> tuple[str, ...]:
            target = entry_points.load(kind, name)
            return settings_of(target) if inspect.isclass(target) else "", meaning(target)

        yield point.name, entry_points.owner(point), about


def settings_of(target: type) -> str:
    """The settings of a class that can be written as text, with their defaults: those that it declares, or its arguments."""
    target = getattr(target, "Settings", target)
    parameters = inspect.signature(target).parameters.values()
    plain = (parameter for parameter in parameters if isinstance(parameter.default, str | int | float | type(None) | type))
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in plain)


knobs = _command("knob", ("stage", "neutral", "default grid", "meaning"), _knobs)
COLUMNS = click.Option(
    ["--columns"],
    metavar="JSON",
    help="What its prompts must have, e.g. '{\"answer\": [72, 42]}'.  [default: its example_columns]",
)
rewards = _command("reward", ("settings", "meaning"), _entry_points, COLUMNS)
policies = _command("policy", ("settings", "meaning"), _entry_points)
learners = _command("learner", ("settings", "meaning"), _entry_points)
engines = _command("engine", ("settings", "meaning"), _entry_points)
