"""Progress for everything long: a rich bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)
Advance = Callable[[int], None]


def say(text: str) -> None:
    """One line for people, on standard error."""
    console.print(text, markup=False)


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A function to call with the number of items just finished; shows a bar, or a line every tenth."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda items: bar.advance(task, items)
        return
    done = 0
    told = 0

    def advance(items: int) -> None:
        nonlocal done, told
        done += items
        if total and (tenth := 10 * done // total) > told:
            told = tenth
            say(f"{what}: {done} of {total}")

    yield advance
