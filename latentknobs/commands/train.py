"""`latentknobs train`: one option for every setting, on top of a YAML file."""

from typing import Any

import click

from latentknobs.commands.settings import config_options, given


@click.command()
@click.option("--config", metavar="FILE.yaml", help="Settings to start from; options given here win over it.")
@config_options()
def train(config: str | None, **flags: Any) -> None:
    """Learn to choose decoding options from preferences, then compare with every constant.

    Everything has a default: `latentknobs train` alone learns a temperature on the packaged language model. A run that was
    interrupted goes on from its last finished stage when the same command is given again.
    """
    from latentknobs.reporting import print_report
    from latentknobs.training.train import train as run_training

    run = run_training(config=config, **given(flags))
    if run.report is not None:
        print_report(run.report)
    click.echo(f"Adapter: {run.path / 'adapter'}")
    if run.report_path is not None:
        click.echo(f"Report:  {run.report_path}")
    click.echo(f"Try it:  latentknobs generate {run.path}")
