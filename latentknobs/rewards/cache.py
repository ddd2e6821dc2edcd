"""Scores that are computed once: one JSON line for each, under a hash of everything the score depends on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentknobs.errors import RunError


def score_key(identity: str, row: Mapping[str, Any]) -> str | None:
    """A hash of a reward's identity and of all it receives of one completion; None where JSON cannot hold that exactly.

    A column without a value is the same as no column.
    """
    parts = [identity, {name: value for name, value in row.items() if value is not None}]
    try:
        data = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest() if json.loads(data) == parts else None
    except (TypeError, ValueError):
        return None


class ScoreCache(dict[str, float | None]):
    """Scores by their `score_key`, kept in a JSONL file that is only ever appended to; RunError if it cannot be read or written.

    Lines that a killed process left incomplete are skipped: their scores are computed again. Failures are never kept. Files of
    `others`, other processes, are only read.
    """

    def __init__(self, path: str | Path, others: Sequence[Path] = ()) -> None:
        super().__init__()
        self.path = Path(path)
        for found in {self.path, *others}:
            try:
                with found.open("rb") as file:
                    self.update(entry for line in file if (entry := _entry(line)))
            except FileNotFoundError:
                pass
            except OSError as error:
                raise RunError(f"The score cache {str(found)!r} cannot be read: {error.strerror}. It may be deleted.") from None

    def add(self, scores: Mapping[str, float | None]) -> None:
        """Keeps some scores, on disk too before it returns."""
        if not scores:
            return
        lines = "".join(json.dumps({"key": key, "score": score}) + "\n" for key, score in scores.items())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{lines}")  # a line of its own, even after one that was cut short
        except OSError as error:
            raise RunError(
                f"The score cache {str(self.path)!r} cannot be written: {error.strerror}. Make room, and start the same "
                "command again: what is finished is kept."
            ) from None
        self.update(scores)


def _entry(line: bytes) -> tuple[str, float | None] | None:
    try:
        row = json.loads(line)
        key, score = row["key"], row["score"]
    except (ValueError, KeyError, TypeError):
        return None
    is_score = isinstance(key, str) and (score is None or (isinstance(score, float) and score - score == 0))
    return (key, score) if is_score else None
