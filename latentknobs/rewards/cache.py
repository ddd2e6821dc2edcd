"""Scores that are computed once: one JSON line for each, under a hash of everything the score depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentknobs.errors import RunError


def score_key(identity: str | None, prompt: Any, completion: Any, ids: Any, columns: Mapping[str, Any]) -> str | None:
    """A hash of a reward and of everything it receives of one completion; None where that cannot be written exactly.

    Args:
        identity: see `Part.identity`; without one there is no key.
        ids: the tokens of the completion, if they are passed.
        columns: what JSON cannot hold has no key. A column without a value is the same as no column.
    """
    if identity is None:
        return None
    present = {name: value for name, value in columns.items() if value is not None}
    try:
        data = json.dumps([identity, prompt, completion, ids, present], sort_keys=True)
    except (TypeError, ValueError):
        return None
    return hashlib.sha256(data.encode()).hexdigest()


class ScoreCache:
    """Scores by their `score_key`, kept in a JSONL file that is only ever appended to.

    Lines that a killed process left incomplete are skipped: their scores are computed again. Failures are never kept.

    Args:
        path: where scores are added.
        others: files of other processes, read only.

    Raises:
        RunError: the file cannot be read, or later not be written.
    """

    def __init__(self, path: str | Path, others: Sequence[Path] = ()) -> None:
        self.path = Path(path)
        self._scores: dict[str, float | None] = {}
        for found in {self.path, *others}:
            try:
                with found.open("rb") as file:
                    for line in file:
                        self._read(line)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise RunError(f"The score cache {str(found)!r} cannot be read: {error.strerror}. It may be deleted.") from None

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, key: str | None) -> bool:
        return key in self._scores

    def __getitem__(self, key: str) -> float | None:
        return self._scores[key]

    def add(self, scores: Mapping[str, float | None]) -> None:
        """Keeps some scores, on disk too before it returns."""
        if not scores:
            return
        lines = [json.dumps({"key": key, "score": score}) for key, score in scores.items()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" + "\n".join(lines) + "\n")  # a line of its own, even after one that was cut short
        except OSError as error:
            raise RunError(
                f"The score cache {str(self.path)!r} cannot be written: {error.strerror}. Make room, and start the same "
                "command again: what is finished is kept."
            ) from None
        self._scores |= scores

    def _read(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            key, score = row["key"], row["score"]
        except (ValueError, KeyError, TypeError):
            return
        if isinstance(key, str) and (score is None or (isinstance(score, float) and score - score == 0)):
            self._scores[key] = score
