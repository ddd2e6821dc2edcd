"""Progress for everything long: a rich bar on a terminal, plain lines elsewhere, and nothing from helping processes.

Which process this is stands in the environment, where torchrun and `accelerate launch` put it; reading it starts nothing.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

console = Console(stderr=True, highlight=False, soft_wrap=True)
Advance = Callable[[int], None]
SECONDS = 10.0  # between two lines of progress where there is no terminal


def processes() -> int:
    """How many processes share this run; 1 unless a launcher says otherwise."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdigit() and int(count) > 0 else 1


def speaks() -> bool:
    """Whether this process is the one that talks to people: the only one, or the first of several."""
    return processes() == 1 or os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def say(text: str) -> None:
    """One line for people, on standard error; the first process speaks for all."""
    if speaks():
        console.print(text, markup=False)


def duration(seconds: float) -> str:
    """A time in the unit that people would say it in: `75 s`, `12 min`, `1.6 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def pace(done: float, total: float, seconds: float) -> str:
    """Items in a second, and the time that is left; empty until something is done."""
    if not done or not seconds:
        return ""
    rate = done / seconds
    return f"{rate:{',.0f' if rate >= 10 else '.2g'}}/s, {duration((total - done) / rate)} left"


class Pace(ProgressColumn):
    """`pace` beside a bar."""

    def render(self, task: Task) -> Text:
        """Of the whole stage so far: its items come in batches, too seldom for a rate of the last seconds."""
        return Text(pace(task.completed, task.total or 0, task.elapsed or 0))


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A function to call with the number of items just finished.

    Shows a bar, or a line every ten seconds, with the rate and the time that is left.
    """
    if not speaks():
        yield lambda items: None
        return
    if console.is_terminal and not console.is_dumb_terminal:  # with TERM=dumb rich shows no bar, and nothing else
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Pace(), console=console, transient=True
        ) as bar:
            task = bar.add_task(what, total=total)
            yield lambda items: bar.advance(task, items)
        return
    done, begun = 0, time.monotonic()
    last = begun

    def advance(items: int) -> None:
        nonlocal done, last
        done += items
        if (now := time.monotonic()) - last >= SECONDS:
            last = now
            say(f"{what}: {done:,} of {total:,}, {pace(done, total, now - begun)}")

    yield advance
