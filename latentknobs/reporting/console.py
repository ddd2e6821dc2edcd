"""Results on a terminal: the table of an evaluation, and text coloured by what the decoder did."""

from collections.abc import Collection, Iterable, Sequence

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
    seeds, prompts = len(report.rewards[HEAD]) // report.runs, len(report.tasks) - report.left_out
    what = f"{prompts} held-out prompts x {seeds} response{'s' * (seeds > 1)}"
    what += f" of {report.runs} training seeds" if report.runs > 1 else ""
    console.print(_against(report, [row for row in rows if row.task == ALL], what))
    if len(report.task_names) > 1:
        console.print(_by_task(report, rows))
    console.print(Text(footnote(report), style="dim"))
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


def titled(title: str, *headings: str, left: Collection[str] = ("",)) -> Table:
    """A table with a title, whose columns are numbers except for those on the left."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    return table


def name_of(policy: str, report: Report) -> str:
    """A policy's name in a table, with what it is in detail; the tuned constant is marked."""
    note = report.notes.get(policy, "tuned" if policy == report.tuned else "")
    return f"{policy} ({note})" if note else policy


def _against(report: Report, rows: Iterable[Comparison], what: str) -> Table:
    headings = ("", "mean reward", "head's gain [95 %]", "p*", "head's win rate [95 %]")
    table = titled(f"Learned head against ... on {what}", *headings)
    for row in rows:
        if row.policy == HEAD:
            table.add_row(Text(HEAD, style="bold"), f"{row.reward.mean:.3f}", "", "", "", end_section=True)
        else:
            table.add_row(
                name_of(row.policy, report),
                f"{row.reward.mean:.3f}",
                Text(signed(row.gain), style={1: "green", 0: "", -1: "red"}[row.sign]),
                probability(row.p),
                percent(row.wins),
            )
    return table


def _by_task(report: Report, rows: Iterable[Comparison]) -> Table:
    tasks = report.task_names[1:]
    table = titled("Mean reward by task", "", *tasks)
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


def probability(p: float) -> str:
    """`.032`, `< .001`."""
    return "< .001" if p < 0.001 else "1" if p > 0.9995 else f"{p:.3f}".removeprefix("0")


def footnote(report: Report) -> str:
    """What the numbers of a table rest on."""
    count = sum(row.policy != HEAD for row in report.table())
    numbers = f" {report.notes['numbers']}" if "numbers" in report.notes else ""
    how = f"* corrected for all {count} comparisons of this report (Holm, half of the error for those of the verdict)"
    return f"{how}; colours go by it.{numbers}"
