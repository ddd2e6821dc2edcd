"""Results on a terminal: the table of an evaluation, and text coloured by what the decoder did."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from latentknobs.evaluation.report import ALL, HEAD, Comparison, Report
from latentknobs.evaluation.statistics import Interval
from latentknobs.reporting.colours import Scale
from latentknobs.reporting.findings import CALM, HEADING

WIDTH = 110  # where the output is not a terminal


def stdout() -> Console:
    """A console for results: standard output, with a bounded width."""
    console = Console(highlight=False)
    return console if console.is_terminal and console.width <= WIDTH else Console(highlight=False, width=WIDTH)


def print_report(report: Report, console: Console | None = None, findings: Sequence[str] | None = None) -> None:
    """Prints the head against every policy, then the mean reward of each on each task, the verdict, and what to look at.

    Args:
        findings: see `read_findings`; None prints nothing about them.
    """
    console = console or stdout()
    rows = report.table()
    seeds, prompts = len(next(iter(report.rewards.values()))), len(report.tasks) - report.left_out
    console.print(
        _against(
            report, [row for row in rows if row.task == ALL], f"{prompts} held-out prompts x {seeds} seed{'s' * (seeds > 1)}"
        )
    )
    if len(report.task_names) > 1:
        console.print(_by_task(report, rows))
    console.print(Text(report.verdict(), style="bold"))
    if findings:
        console.print(Text(f"\n{HEADING}", style="bold"))
        for sentence in findings:
            console.print(Padding(Text(f"- {sentence}"), (0, 0, 0, 2), expand=False))
    elif findings is not None:
        console.print(Text(CALM, style="dim"))


def coloured(pieces: Sequence[str], values: Sequence[float], scale: Scale) -> Text:
    """Token texts on the colour of their knob value."""
    text = Text()
    for piece, value in zip(pieces, values, strict=True):
        text.append(piece, style=f"black on {scale.solid(value)}")
    return text


def legend(scale: Scale) -> Text:
    """The values of a knob on their colours, in one line."""
    text = Text(f"{scale.knob}  ")
    for value in scale.values:
        text.append(f" {value:g} ", style=f"black on {scale.solid(value)}")
    return text


def name_of(policy: str, report: Report) -> str:
    """A policy's name in a table; the tuned constant is marked."""
    return f"{policy} (tuned)" if policy == report.tuned else policy


def _against(report: Report, rows: Iterable[Comparison], what: str) -> Table:
    table = Table(title=f"Learned head against ... on {what}", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("mean reward", "head's gain [95 %]", "head's win rate [95 %]"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.policy == HEAD:
            table.add_row(Text(HEAD, style="bold"), f"{row.reward.mean:.3f}", "", "", end_section=True)
        else:
            table.add_row(
                name_of(row.policy, report),
                f"{row.reward.mean:.3f}",
                Text(signed(row.gain), style=_mood(row.gain, 0)),
                Text(percent(row.wins), style=_mood(row.wins, 0.5)),
            )
    return table


def _by_task(report: Report, rows: Iterable[Comparison]) -> Table:
    table = Table(title="Mean reward by task", title_justify="left", title_style="bold")
    table.add_column("")
    tasks = report.task_names[1:]
    for task in tasks:
        table.add_column(task, justify="right")
    means = {(row.policy, row.task): row.reward.mean for row in rows}
    best = {task: max(means[policy, task] for policy in report.rewards) for task in tasks}
    for policy in report.rewards:
        cells = [Text(f"{means[policy, task]:.3f}", style="bold" if means[policy, task] == best[task] else "") for task in tasks]
        table.add_row(Text(name_of(policy, report), style="bold" if policy == HEAD else ""), *cells, end_section=policy == HEAD)
    return table


def signed(interval: Interval) -> str:
    """`+0.031 [+0.012, +0.050]`."""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def percent(interval: Interval) -> str:
    """`61.2 [55.0, 67.1] %`."""
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] %"


def _mood(interval: Interval, neutral: float) -> str:
    return "green" if interval.low > neutral else "red" if interval.high < neutral else ""
