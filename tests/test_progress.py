"""Progress: lines where there is no terminal, a bar on one, and silence in all processes but the first."""

import io
import re

import pytest
from rich.console import Console

from latentknobs import progress as module
from latentknobs.progress import duration, processes, progress, say, speaks

FIRST, SECOND = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in FIRST:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def shown(monkeypatch):
    """What people see, where there is no terminal."""
    text = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=text, soft_wrap=True))
    return text


def work():
    say("[begin]")
    with progress("rollouts", 40) as advance:
        for _ in range(10):
            advance(4)


def test_elsewhere_than_on_a_terminal_there_is_a_plain_line_every_ten_seconds(shown, monkeypatch):
    clock = iter(range(0, 1000, 3))  # three seconds pass between two looks at it
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    work()
    assert shown.getvalue().splitlines() == [
        "[begin]",
        "rollouts: 16 of 40, 1.3/s, 18 s left",
        "rollouts: 32 of 40, 1.3/s, 6 s left",
    ]


def test_a_terminal_without_a_cursor_has_plain_lines(monkeypatch):
    text, clock = io.StringIO(), iter(range(0, 1000, 3))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module, "console", Console(file=text, force_terminal=True, width=80))
    work()
    assert "rollouts: 16 of 40, 1.3/s, 18 s left" in text.getvalue()


def test_on_a_terminal_a_bar_comes_and_goes(monkeypatch):
    text = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "console", Console(file=text, force_terminal=True, width=80))
    work()
    assert "rollouts" in text.getvalue() and "40/40" in text.getvalue() and "of 40" not in text.getvalue()
    assert re.search(r"\d/s, 0 s left", re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()))


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (75, "75 s"), (720, "12 min"), (5760, "1.6 h")])
def test_a_time_in_words(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("environment", "count", "talks"),
    [
        ({}, 1, True),
        (FIRST, 2, True),
        (SECOND, 2, False),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2, False),
        ({"RANK": "1"}, 1, True),  # of something else: there is only one process
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1, True),
        ({"WORLD_SIZE": "many", "RANK": "1"}, 1, True),
    ],
)
def test_only_the_first_of_several_processes_talks(environment, count, talks, monkeypatch, shown):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (processes(), speaks()) == (count, talks)
    work()
    assert bool(shown.getvalue()) == talks
