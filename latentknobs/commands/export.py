"""`latentknobs export`: the preferences of a run, as the rows that TRL's trainers read."""

import json
from pathlib import Path

import click

from latentknobs.commands import UserPath


@click.command()
@click.argument("run", type=UserPath())
@click.option("--round", "number", metavar="N", type=click.IntRange(1), help="Which round's pairs.  [default: the last]")
@click.option("--to", "path", metavar="FILE.jsonl", type=UserPath(), help="Where to.  [default: standard output]")
def export(run: Path, number: int | None, path: Path | None) -> None:
    """Write the pairs of RUN as JSON lines in TRL's preference format: prompt, chosen, rejected. Needs no model.

    Rows also hold the scores, the token ids and the prompt's other columns. `latentknobs train --preferences FILE.jsonl` reads
    them back token by token.
    """
    from latentknobs.data.trl import preference_rows, write_preferences
    from latentknobs.training.round_data import load_round

    data = load_round(run, number)
    rows = preference_rows(data.prompts, data.rollouts, data.pairs, data.scores)
    if path is None:
        for row in rows:
            click.echo(json.dumps(row))
        return
    write_preferences(path, rows)
    click.echo(f"Preferences: {path} ({len(data.pairs)} pairs)")
