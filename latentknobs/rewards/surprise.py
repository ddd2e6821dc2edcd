"""Creative but well spelled: rare words are worth more, wrong words and repetition cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from latentknobs.rewards.lexicon import Lexicon
from latentknobs.rewards.repetition import repeated_share
from latentknobs.rewards.text import Messages, complete_words, text_of

UNKNOWN_WORD = -12.0
REPEATED_WORDS = 3


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
        self.lexicon = lexicon if isinstance(lexicon, Lexicon) else _read_lexicon(lexicon)
        self.scale = scale
        self.offset = offset
        self.__name__ = "word_surprise"

    def __call__(self, prompts: Sequence[str | Messages], completions: Sequence[str | Messages], **columns: Any) -> list[float]:
        return [(creative_spelling(text_of(item), self.lexicon) - self.offset) * self.scale for item in completions]


@lru_cache(maxsize=8)
def _read_lexicon(path: str | Path | None) -> Lexicon:
    return Lexicon.packaged() if path is None else Lexicon.from_file(path)
