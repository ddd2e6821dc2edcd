"""The table on a terminal, and coloured text."""

import io

import numpy as np
import pytest
from rich.console import Console

from latentknobs.evaluation.report import GREEDY, HEAD, Report
from latentknobs.reporting import coloured, legend, print_report
from latentknobs.reporting.colours import Scale
from latentknobs.reporting.console import WIDTH

SCALE = Scale("temperature", (0.0, 0.5, 1.0))


def printed(report: Report, findings: list[str] | None = None, **options: object) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=WIDTH, **options), findings)  # type: ignore[arg-type]
    return out.getvalue()


def test_table_has_every_policy_the_counts_and_the_verdict(report: Report) -> None:
    text = printed(report)
    assert all(name in text for name in report.rewards)
    assert f"{report.tuned} (tuned)" in text
    assert "30 held-out prompts x 2 responses" in text
    assert " ".join(report.verdict().split()) in " ".join(text.split())


def test_gain_and_win_rate_of_a_row_are_those_of_the_report(report: Report) -> None:
    row = next(line for line in printed(report).splitlines() if line.startswith("│ greedy") or line.startswith("  greedy"))
    compared = report.compare(GREEDY)
    assert f"{compared.gain.mean:+.3f}" in row and f"{100 * compared.wins.mean:.1f}" in row


def test_tasks_stand_side_by_side_only_if_there_are_several(report: Report) -> None:
    assert "Mean reward by task" in printed(report)
    single = Report(report.rewards, ["all"] * 30, report.tuned, report.tuning)
    assert "Mean reward by task" not in printed(single)


def test_no_line_is_wider_than_the_console(report: Report) -> None:
    assert max(map(len, printed(report).splitlines())) <= WIDTH


def test_findings_come_last_each_on_its_own_line_and_markup_in_them_is_text(report: Report) -> None:
    text = printed(report, ["Rewards tie: [bold]half[/bold] of them.", "The head " + "is very long and " * 12 + "wraps."])
    lines = text[text.index("What to look at") :].splitlines()
    assert lines[1] == "  - Rewards tie: [bold]half[/bold] of them." and lines[2].startswith("  - The head is very long")
    assert lines[3].startswith("  ") and max(map(len, lines)) <= WIDTH


def test_no_findings_are_one_calm_sentence_and_unknown_ones_none(report: Report) -> None:
    assert "Nothing stands out" in printed(report, []) and "What to look at" not in printed(report, [])
    assert "Nothing stands out" not in printed(report) and "What to look at" not in printed(report)


def test_prompts_that_could_not_be_judged_are_not_counted(report: Report) -> None:
    rewards = {name: values.copy() for name, values in report.rewards.items()}
    rewards[GREEDY][0, :2] = np.nan
    text = printed(Report(rewards, report.tasks, report.tuned, report.tuning))
    assert "28 held-out prompts x 2 responses" in text and "2 of 30 prompts are left out" in " ".join(text.split())


def test_a_clear_gain_is_green_and_a_clear_loss_red(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[32m+0.3" in printed(report, force_terminal=True)
    worse = Report(report.rewards | {HEAD: report.rewards[HEAD] - 1}, report.tasks, report.tuned, report.tuning)
    assert "\x1b[31m-0.6" in printed(worse, force_terminal=True) or "\x1b[31m-0.7" in printed(worse, force_terminal=True)


def test_coloured_text_keeps_the_text_and_colours_each_token() -> None:
    text = coloured([" a", " b"], [0.0, 1.0], SCALE)
    assert text.plain == " a b"
    assert [str(span.style) for span in text.spans] == [f"black on {SCALE.solid(v)}" for v in (0.0, 1.0)]


def test_markup_in_a_token_is_text() -> None:
    out = io.StringIO()
    Console(file=out).print(coloured(["[red]x[/red]"], [0.5], SCALE))
    assert out.getvalue() == "[red]x[/red]\n"


def test_legend_names_the_knob_and_its_values() -> None:
    assert legend(SCALE).plain.split() == ["temperature", "0", "0.5", "1"]
