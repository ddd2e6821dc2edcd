"""The tables of the reference, written from the code: settings, what ships, the command line. Not committed; see `conf.py`."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from latentknobs import cli, entry_points
from latentknobs.commands.installed import meaning, settings_of
from latentknobs.config import SECTIONS, fields
from latentknobs.training.rundir import FILES

KINDS = ("policy", "learner", "engine", "reward")
WRITTEN = "settings", "shipped", "command-line", "run-files"


def write(folder: Path) -> None:
    """Writes every page of `WRITTEN`; files whose content stays are not touched, so that Sphinx builds only what changed."""
    pages = dict(zip(WRITTEN, (settings(), shipped(), command_line(), run_files()), strict=True))
    for name, lines in pages.items():
        path, text = folder / f"{name}.md", "\n".join(lines) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def settings() -> Iterator[str]:
    """Every setting of `train`, by section, and of every learner that ships."""
    yield "# Settings\n"
    yield "Each is a keyword of `latentknobs.train`, an option of `latentknobs train` (with `-` for `_`), and a line of a YAML"
    yield "file (`latentknobs train --config FILE.yaml`), flat or in its section. A run writes all into its `config.yaml`."
    for section, kind in SECTIONS.items():
        yield f"\n## {section}\n"
        if kind is not None:
            yield from _settings(one for one in fields().values() if one.section == section)
            continue
        yield "`learner: NAME`, and the settings that the learner declares.\n"
        for name in entry_points.names("learner"):
            own = [one for one in fields(name).values() if one.section == section and one.name != "name"]
            yield from (f"### {name}\n", *_settings(own), "")


def _settings(found: Any) -> Iterator[str]:
    yield from ("| setting | default | meaning |", "|---|---|---|")
    for one in found:
        default = one.info.get_default(call_default_factory=True)
        text = " ".join(str(one.info.description or "").split()).replace("|", "\\|")
        yield f"| `{one.alias}` | `{default!r}` | {text} |"


def shipped() -> Iterator[str]:
    """Policies, learners, engines and rewards that are installed with the package."""
    yield "# Policies, learners, engines, rewards\n"
    yield "What ships. `latentknobs policies list` (or `learners`, `engines`, `rewards`) shows what is installed; `check NAME`"
    yield "runs the conformance suite of its kind. Settings follow the name: `edt:base=1.4,theta=3`. Knobs have a page of their"
    yield "own: [shipped knobs](../knobs.md)."
    for kind in KINDS:
        yield f"\n## {entry_points.group_of(kind).partition('.')[2].capitalize()}\n"
        yield from ("| name | settings | meaning |", "|---|---|---|")
        for name in entry_points.names(kind):
            target = entry_points.load(kind, name)
            own = settings_of(target) if inspect.isclass(target) else ""
            yield f"| `{name}` | {own and f'`{own}`'.replace('|', chr(92) + '|')} | {meaning(target)} |"


def command_line() -> Iterator[str]:
    """The help of every command."""
    yield "# Command line\n"
    root = cli.cli
    context = click.Context(root, info_name="latentknobs", max_content_width=100)
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        yield f"## latentknobs {name}\n"
        yield from ("```text", command.get_help(click.Context(command, context, info_name=name, max_content_width=100)), "```\n")


def run_files() -> Iterator[str]:
    """What a run directory holds."""
    yield "# Files on disk\n"
    yield "## A run\n"
    yield from ("| file | what |", "|---|---|", *(f"| {file} | {what} |" for file, what in FILES))
    yield "\n## An adapter\n"
    yield from ("| file | what |", "|---|---|")
    yield "| `knob_config.json` | format, base model, space, level, features, the shape of the head, notes on its training |"
    yield "| `knob_head.safetensors` | the weights of the head |"
    yield "| `rival_head.safetensors` | a head of the same kind that sees no hidden states, where training left one |"
    yield "| `README.md` | a model card with the verdict |"
    yield "\nNothing that a file names is imported; weights are safetensors only, and every number is checked before use."
