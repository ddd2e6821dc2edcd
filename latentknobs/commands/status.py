"""`latentknobs status`: the progress of a run, during it or afterwards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from latentknobs.commands import UserPath
from latentknobs.progress import duration

if TYPE_CHECKING:
    from rich.table import Table

    from latentknobs.training.status import Stage, Status

SECONDS = 2.0  # between two looks


@click.command()
@click.argument("run", type=UserPath(), default=Path("runs/latest"))
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until the run ends or stops.")
def status(run: Path, watch: bool) -> None:
    """Show the stages of RUN with their sizes and times, and how long it will still take. Changes nothing."""
    from rich.console import Group
    from rich.live import Live

    from latentknobs.reporting.console import stdout
    from latentknobs.training.status import read_status

    def show(found: Status) -> Group:
        return Group(_table(found, run), _sentence(found, run), *filter(None, [found.left_out]))

    found = read_status(run)
    console = stdout()
    if not (watch and console.is_terminal):
        console.print(show(found))
    while watch and not console.is_terminal and found.running:  # plain lines: one for each change
        before, found = _sentence(found, run), _later(run)
        if (sentence := _sentence(found, run)) != before:
            console.print(sentence)
    if watch and console.is_terminal:
        with Live(show(found), console=console, auto_refresh=False) as live:
            while found.running:
                found = _later(run)
                live.update(show(found), refresh=True)


def _later(run: Path) -> Status:
    from latentknobs.training.status import read_status

    time.sleep(SECONDS)
    return read_status(run)


def _table(found: Status, run: Path) -> Table:
    from rich.filesize import decimal

    from latentknobs.reporting.console import titled

    table = titled(str(run), "stage", "done", "of", "size", "time", "left", left=("stage",))
    for stage in found.stages:
        mark = "green" if stage.done == stage.items else "" if stage.done else "dim"
        table.add_row(
            stage.name,
            f"{stage.done:,}",
            f"{stage.items:,}",
            decimal(stage.size),
            duration(stage.seconds),
            _left(stage),
            style=mark,
        )
    total = sum(stage.size for stage in found.stages), sum(stage.seconds for stage in found.stages)
    table.add_section()
    table.add_row("all", "", "", decimal(total[0]), duration(total[1]), "?" if found.left is None else duration(found.left))
    return table


def _sentence(found: Status, run: Path) -> str:
    if found.finished:
        return "Finished."
    going = "Running." if found.running else f"Not running: `latentknobs train --resume {run}` goes on with it."
    if found.left is None:
        return f"{going} How long is not known yet: some kind of stage has not been timed."
    until = f", until about {time.strftime('%H:%M', time.localtime(time.time() + found.left))}" if found.running else ""
    return f"{going} About {duration(found.left)} are left{until}."


def _left(stage: Stage) -> str:
    return "?" if stage.left is None else "" if stage.left == 0 else duration(stage.left)
