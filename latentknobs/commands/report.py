"""`latentknobs report`: the results of a finished run, again, from its files alone."""

from pathlib import Path

import click

from latentknobs.commands import UserPath


@click.command()
@click.argument("run", type=UserPath())
@click.option("--picture", metavar="FILE", type=UserPath(), help="Also draw the heat map as png, svg or pdf.")
@click.option("--per-task", default=1, show_default=True, type=click.IntRange(1), help="Responses of each task in the picture.")
def report(run: Path, picture: Path | None, per_task: int) -> None:
    """Print the result table of RUN and write its report.html again. Needs no model."""
    from latentknobs.reporting import print_report, read_findings, write_picture, write_report
    from latentknobs.training.judging import read_report

    found = read_report(run)
    print_report(found, findings=read_findings(run))
    click.echo(f"Report:  {write_report(run, found)}")
    if picture is not None:
        click.echo(f"Picture: {write_picture(run, picture, per_task)}")
