"""`latentknobs report`: the results of a finished run, again, from its files alone."""

from pathlib import Path

import click

from latentknobs.commands import UserPath


@click.command()
@click.argument("runs", metavar="RUN...", type=UserPath(), nargs=-1, required=True)
@click.option("--picture", metavar="FILE", type=UserPath(), help="Also draw the heat map as png, svg or pdf.")
@click.option("--per-task", default=1, show_default=True, type=click.IntRange(1), help="Responses of each task in the picture.")
def report(runs: tuple[Path, ...], picture: Path | None, per_task: int) -> None:
    """Print the result table of RUN and write its report.html again. Needs no model.

    Several runs are taken for training seeds of one training; their common report is written to report-seeds.html of the first.
    """
    from latentknobs.evaluation.accounting import read_accounts
    from latentknobs.evaluation.report import Report
    from latentknobs.reporting import print_report, read_findings, write_picture, write_report
    from latentknobs.training.judging import read_report
    from latentknobs.training.several import check_seeds, first_seed

    found = [read_report(run) for run in runs]
    for run, one in zip(runs, found, strict=True):
        one.accounts = read_accounts(run, one.rewards)
    check_seeds(runs)
    joint, first = (Report.join(found) if len(found) > 1 else found[0]), first_seed(runs[0])
    print_report(joint, findings=read_findings(first))
    path = runs[0] / "report-seeds.html" if len(runs) > 1 else runs[0] / "report.html"
    click.echo(f"Report:  {write_report(first, joint, path)}")
    if picture is not None:
        click.echo(f"Picture: {write_picture(first, picture, per_task)}")
