"""`latentknobs account`: what every policy of a finished run traded."""

from pathlib import Path
from typing import Any

import click

from latentknobs.commands import UserPath
from latentknobs.commands.settings import config_options, parse_flags

FIELDS = ("model", "trust_remote_code", "device", "device_map", "dtype", "batch_size")


@click.command()
@click.argument("run", type=UserPath())
@click.option("--per", "unit", type=click.Choice(["token", "response"]), default="token", show_default=True,
              help="Whether nats are counted per token or per response.")  # fmt: skip
@config_options(*FIELDS, default="as in training")
def account(run: Path, unit: Any, **flags: Any) -> None:
    """Account for every policy in the evaluation of RUN: sensibleness, diversity and attribution of its choices, in nats.

    Reads each response again with the model: one forward pass, and a second where prompts name their evidence. The table and a
    plot of the trade-off become part of the report.
    """
    from latentknobs.reporting.account import print_accounts
    from latentknobs.training.accounts import account as account_run
    from latentknobs.training.judging import read_report

    found = account_run(run, **parse_flags(flags))
    print_accounts(found, read_report(run), unit)
    click.echo(f"Report: {run / 'report.html'}")
