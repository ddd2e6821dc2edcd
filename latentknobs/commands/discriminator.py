"""`latentknobs discriminator`: train what the knob `classifier_scale` guides with."""

from pathlib import Path
from typing import Any

import click

from latentknobs.commands import UserPath, check_writable
from latentknobs.commands.settings import config_options, parse_flags

FIELDS = ("model", "trust_remote_code", "device", "device_map", "dtype", "batch_size")


@click.command()
@click.argument("run", type=UserPath())
@click.option("--out", required=True, metavar="FILE", type=UserPath(), help="Where it is written (safetensors).")
@click.option("--threshold", type=float, help="A response has the property if its reward is above this.  [default: the median]")
@click.option("--rank", default=16, show_default=True, type=click.IntRange(1, 4096), help="Width of its vectors of tokens.")
@click.option("--steps", default=300, show_default=True, type=click.IntRange(1, 10**6), help="Steps of its optimiser.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Of its beginning and its batches.")
@config_options(*FIELDS, default="as in training")
def discriminator(run: Path, out: Path, threshold: float | None, rank: int, steps: int, seed: int, **flags: Any) -> None:
    """Train a discriminator of good responses on the hidden states of the first round of RUN, for the knob classifier_scale."""
    from latentknobs.training.discriminate import discriminator as train_discriminator

    check_writable(out, "--out")
    quality = train_discriminator(run, out, threshold=threshold, rank=rank, steps=steps, seed=seed, **parse_flags(flags))
    click.echo(f"{out}: {quality}")
