"""Creative but well-spelled text: rare words raise the reward, misspelled words and repetition lower it."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from latentknobs.errors import DataError
from latentknobs.rewards.repetition import repeated_share
from latentknobs.rewards.text import Texts, complete_words, text_of, words_of

UNKNOWN_WORD = -12.0
REPEATED_WORDS = 3


class Lexicon:
    """Which words are spelled correctly, and how common each is: word counts of a corpus, in lower case."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        if not counts or any(not isinstance(count, int) or count < 1 for count in counts.values()):
            raise DataError("A lexicon maps at least one word to a count of 1 or more.")
        self.counts = dict(counts)
        self._log_total = math.log(sum(self.counts.values()))

    def __contains__(self, word: str) -> bool:
        return word in self.counts

    def surprisal(self, word: str) -> float | None:
        """Unigram surprisal `-ln(count / total)` in nats of a lower-case word; None for a word that is not in it."""
        count = self.counts.get(word)
        return None if count is None else self._log_total - math.log(count)

    @classmethod
    def from_text(cls, texts: str | Iterable[str], min_count: int = 1) -> "Lexicon":
        """Count the words of one text or many; words that occur fewer than `min_count` times are left out."""
        counts: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            counts.update(word.lower() for word in words_of(text))
        return cls({word: count for word, count in counts.items() if count >= min_count})

    @classmethod
    def from_file(cls, path: str | Path) -> "Lexicon":
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
    @lru_cache(maxsize=1)
    def packaged(cls) -> "Lexicon":
        """The lexicon of small children's stories that ships with the testbed."""
        with resources.as_file(resources.files("latentknobs.testbed") / "lexicon.json") as path:
            return cls.from_file(path)

    def save(self, path: str | Path) -> None:
        """Write a JSON object of counts, the commonest word first."""
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        Path(path).write_text(json.dumps(dict(ranked), separators=(",", ":")) + "\n", encoding="utf-8")


def creative_spelling(completion: str, lexicon: Lexicon) -> float:
    """Mean over words of their unigram surprisal in nats, `UNKNOWN_WORD` for one that is not in the lexicon, times
    1 - the share of repeated word 3-grams; 0 for a completion without words.

    A last word that the length limit may have cut does not count, neither for nor against.
    """
    found = complete_words(completion)
    if not found:
        return 0.0
    surprisals = (lexicon.surprisal(word) for word in found)
    mean = sum(UNKNOWN_WORD if value is None else value for value in surprisals) / len(found)
    return mean * (1 - repeated_share(found, REPEATED_WORDS))


class WordSurprise:
    """The reward `(creative_spelling - offset) * scale`; without offset and scale it is in nats per word.

    `lexicon` is a Lexicon, the path of a JSON file with word counts, or None for the packaged one.
    """

    def __init__(self, lexicon: Lexicon | str | Path | None = None, scale: float = 1.0, offset: float = 0.0) -> None:
        found = Lexicon.packaged() if lexicon is None else lexicon
        self.lexicon = found if isinstance(found, Lexicon) else Lexicon.from_file(found)
        self.scale, self.offset = scale, offset
        self.__name__ = "word_surprise"

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        return [(creative_spelling(text_of(item), self.lexicon) - self.offset) * self.scale for item in completions]
