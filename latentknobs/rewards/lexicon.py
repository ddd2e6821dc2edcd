"""A lexicon: which words are spelled correctly, and how common each is."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from latentknobs.errors import DataError
from latentknobs.rewards.text import words_of


class Lexicon:
    """Word counts of a corpus; words are kept in lower case."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        if not counts or any(not isinstance(count, int) or count < 1 for count in counts.values()):
            raise DataError("A lexicon maps at least one word to a count of 1 or more.")
        self.counts = dict(counts)
        self._log_total = math.log(sum(self.counts.values()))

    def __len__(self) -> int:
        return len(self.counts)

    def __contains__(self, word: str) -> bool:
        return word in self.counts

    def __repr__(self) -> str:
        return f"Lexicon({len(self)} words, {sum(self.counts.values())} occurrences)"

    def surprisal(self, word: str) -> float | None:
        """Unigram surprisal `-ln(count / total)` in nats of a lower-case word; None for a word that is not in it."""
        count = self.counts.get(word)
        return None if count is None else self._log_total - math.log(count)

    @classmethod
    def from_text(cls, texts: str | Iterable[str], min_count: int = 1) -> Lexicon:
        """Count the words of one text or many; words seen fewer than `min_count` times are left out."""
        counts: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            counts.update(word.lower() for word in words_of(text))
        return cls({word: count for word, count in counts.items() if count >= min_count})

    @classmethod
    def from_file(cls, path: str | Path) -> Lexicon:
        """Read what `save` wrote. DataError if there is no such file, or it does not hold word counts."""
        try:
            counts = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"The lexicon {str(path)!r} cannot be read ({error.strerror}): give a JSON file.") from error
        except ValueError as error:
            raise DataError(f"The lexicon {str(path)!r} is not JSON ({error}): write it with Lexicon.save.") from error
        if not isinstance(counts, dict):
            raise DataError(f"The lexicon {str(path)!r} holds a {type(counts).__name__}, not an object of word counts.")
        return cls(counts)

    @classmethod
    def packaged(cls) -> Lexicon:
        """The lexicon of small children's stories that ships with the testbed."""
        with resources.as_file(resources.files("latentknobs.testbed") / "lexicon.json") as path:
            return cls.from_file(path)

    def save(self, path: str | Path) -> None:
        """Write a JSON object of counts, the commonest word first."""
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        Path(path).write_text(json.dumps(dict(ranked), separators=(",", ":")) + "\n", encoding="utf-8")
