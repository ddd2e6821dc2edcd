"""`latentknobs knobs list`: what is installed. A broken plugin is a row that says what is wrong with it."""

import inspect
import re

import click
from rich import box
from rich.table import Table
from rich.text import Text

from latentknobs.errors import PluginError
from latentknobs.knobs.knob import DecodingKnob
from latentknobs.knobs.registry import Source, knob_class, sources
from latentknobs.reporting.console import stdout


@click.group()
def knobs() -> None:
    """The knobs that are installed."""


@knobs.command("list")
def list_knobs() -> None:
    """Every knob on offer: where it comes from, where it acts, its neutral value, its default grid and its meaning."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("knob", "from", "stage", "neutral"):
        table.add_column(heading, no_wrap=True, style="bold" if heading == "knob" else "")
    table.add_column("default grid", overflow="fold", max_width=16)
    table.add_column("meaning", overflow="fold")
    for source in sources():
        table.add_row(source.name, f"{source.distribution} {source.version}", *_about(source))
    stdout().print(table)


def meaning(knob: type[DecodingKnob]) -> str:
    """The first sentence of the class's docstring, without citations in brackets."""
    paragraph = " ".join((inspect.getdoc(knob) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.;]) ", re.sub(r" \([^()]*(?:arXiv|et al|pull request)[^()]*\)", "", paragraph))[0].rstrip(";.")


def _about(source: Source) -> tuple[Text | str, ...]:
    try:
        knob = knob_class(source.full_name)
    except PluginError as error:
        return "", "", "", Text(f"broken: {error}", style="red")
    field = knob.model_fields["options"]
    grid = "none" if field.is_required() else ", ".join(f"{value:g}" for value in field.default)
    return knob.stage.value, f"{knob.neutral:g}", grid, meaning(knob)


@knobs.command("check")
@click.argument("name")
def check(name: str) -> None:
    """Run the conformance suite on one knob: a name, `distribution:name`, or `name:grid`."""
    from latentknobs.testing import report

    text, good = report(name)
    click.echo(text)
    raise SystemExit(0 if good else 1)
