"""`latentknobs headroom`: whether adapting would pay, and how, before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from latentknobs.commands.settings import config_options, parse_flags

if TYPE_CHECKING:
    from rich.table import Table

    from latentknobs.training.headroom import Headroom

FIELDS = (
    "model", "trust_remote_code", "device", "device_map", "dtype", "prompts", "train_prompts", "reward", "reward_weights",
    "knobs", "order", "level", "engine", "rollouts", "first_round", "max_new_tokens", "batch_size", "shard_size", "seed",
    "output_dir",
)  # fmt: skip


@click.command()
@click.option("--count", type=click.IntRange(4), default=32, show_default=True, help="Prompts.")
@click.option(
    "--samples", type=click.IntRange(2), default=8, show_default=True, help="Responses of each constant to each prompt."
)
@click.option("--resume", is_flag=True, help="Also reuse the finished scores of a reward without `version`.")
@config_options(*FIELDS, default="as in train")
def headroom(count: int, samples: int, resume: bool, **flags: Any) -> None:
    """Ask whether adapting would pay, and how, on a few dozen prompts.

    Compares the best constant with a constant for each task and each prompt, with families of simple rules, and with one choice
    at the right place; what chooses never judges. Says first what it costs. Writes headroom.json, headroom.png, samples.md and
    config.yaml to the output directory, runs/headroom by default; `latentknobs train --config ... --after` reuses the rollouts.
    """
    from latentknobs.reporting.console import stdout
    from latentknobs.reporting.plots import write_gains
    from latentknobs.training.headroom import SAMPLES
    from latentknobs.training.headroom import headroom as find_headroom

    found = find_headroom(count, samples=samples, resume=resume, **parse_flags(flags))
    stdout().print(_table(found))
    rows = [(name, gain, found.p[name]) for name, gain in found.gains.items()]
    picture = write_gains(rows, f"gain over {found.best}", found.path / "headroom.png")
    click.echo(f"{found.verdict}\n\nPlot:    {picture}\nSamples: {found.path / SAMPLES}")


def _table(found: Headroom) -> Table:
    from latentknobs.reporting.console import probability, signed, titled

    headings = ("", "reward or gain [95 %]", "p*", "best rule")
    table = titled("What adapting would add to the best constant", *headings, left=("", "best rule"))
    for name, reward in found.constants.items():
        table.add_row(f"{name} (best)" if name == found.best else name, str(reward), "", "")
    table.add_section()
    for name, gain in found.gains.items():
        mood = "green" if found.p[name] < 0.05 and gain.mean > 0 else ""
        table.add_row(
            name, f"[{mood}]{signed(gain)}[/]" if mood else signed(gain), probability(found.p[name]), found.rules.get(name, "")
        )
    table.caption = "* corrected for all of these gains (Holm); what chooses never judges"
    return table
