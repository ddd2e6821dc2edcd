"""Responses that are written down as they finish, until the file that they belong to is complete.

An engine that samples whole batches finishes theirs together: an interruption costs the batch that is running.
"""

import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from latentknobs.data.rollouts import LARGEST, Rollout
from latentknobs.errors import RunError
from latentknobs.files import fit, parse_json, read_text


def journal_of(run: Path, file: str) -> Path:
    """Where the journal of a file of a run is, until that file is complete."""
    return run / "unfinished" / file.replace("/", "-")


def finished_in(path: Path, key: str) -> int:
    """How many responses a journal holds; 0 where there is none, or one of another key."""
    try:
        with path.open("rb") as file:
            is_ours = file.readline().rstrip(b"\n") == key.encode()
            return sum(line.startswith(b"{") for line in file) if is_ours else 0
    except OSError:
        return 0


@dataclass(frozen=True)
class Finished:
    """A line of a journal: a response, and its place in its batch."""

    batch: int
    place: int
    rollout: Rollout


class Journal:
    """What is finished of one file of rollouts. In a `with` block it is open, and removed if the block ends without an error.

    Args:
        path: where it is; a journal of another key is replaced.
        key: of the file of rollouts.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._known: dict[int, dict[int, Rollout]] = defaultdict(dict)

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = read_text(self.path, RunError, "Delete it.", LARGEST).splitlines() if self.path.exists() else []
        is_ours = lines[:1] == [self.key]
        for line in lines[1:] if is_ours else []:
            with suppress(ValueError):  # a line that was cut off
                found: Finished = fit(parse_json(line), Finished)
                self._known[found.batch][found.place] = found.rollout
        self._file = self.path.open("a" if is_ours else "w", encoding="utf-8")
        self._write("" if is_ours else self.key)  # ends a line that was cut off
        return self

    def known(self, batch: int) -> dict[int, Rollout]:
        """The finished responses of a batch, by their places in it."""
        return self._known[batch]

    def add(self, batch: int, place: int, rollout: Rollout) -> None:
        """Writes down one more."""
        self._write(json.dumps(asdict(Finished(batch, place, rollout))))

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n")
        self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self.path.unlink()
