"""`latentknobs strategies`: a few options out of a large pool, by greedy coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from latentknobs.commands.settings import config_options, parse_flags

if TYPE_CHECKING:
    from rich.table import Table

    from latentknobs.training.strategies import Strategies

FIELDS = (
    "model", "trust_remote_code", "device", "device_map", "dtype", "prompts", "train_prompts", "reward", "reward_weights",
    "knobs", "order", "engine", "max_new_tokens", "batch_size", "shard_size", "seed", "output_dir",
)  # fmt: skip


@click.command()
@click.option("--count", type=click.IntRange(1), default=6, show_default=True, help="How many strategies to choose.")
@click.option("--copies", type=click.IntRange(1), default=1, show_default=True, help="Responses of each option to each prompt.")
@click.option("--resume", is_flag=True, help="Also reuse the finished scores of a reward without `version`.")
@config_options(*FIELDS, default="see below")
def strategies(count: int, copies: int, resume: bool, **flags: Any) -> None:
    """Choose a few strategies out of a pool of options, and show how well they cover the prompts.

    By default the pool has the 180 options of arXiv 2603.09065: temperature, top-k, top-p and min-p. One half of the prompts
    (64) chooses, the other half judges. Writes strategies.json, for `latentknobs train --strategies`, and coverage.png to the
    output directory, runs/strategies by default; other defaults are those of `latentknobs train`.
    """
    from latentknobs.reporting.console import stdout
    from latentknobs.reporting.plots import write_coverage
    from latentknobs.training.strategies import find_strategies

    found = find_strategies(count, copies=copies, resume=resume, **parse_flags(flags))
    stdout().print(_table(found))
    picture = write_coverage(found.rows(), found.path.with_name("coverage.png"))
    click.echo(f"Strategies: {found.path}\nPlot:       {picture}\nTrain with: latentknobs train --strategies {found.path}")


def _table(found: Strategies) -> Table:
    from latentknobs.reporting.console import titled

    headings = ("N", "added by greedy coverage", "coverage where chosen", "coverage elsewhere", "best N means elsewhere")
    table = titled(f"{len(found.chosen)} of {found.space.K} options", *headings, left=headings[1:2])
    for n, (label, chosen, elsewhere, best) in enumerate(found.rows(), 1):
        table.add_row(str(n), label, f"{chosen:.3f}", f"{elsewhere:.3f}", f"{best:.3f}")
    return table
