"""Minus the share of repeated n-grams: rewards text that does not repeat itself."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from latentknobs.errors import ConfigError
from latentknobs.rewards.text import Texts, text_of, words_of


def repeated_share(units: Sequence[Hashable], n: int) -> float:
    """`1 - unique / total` over the n-grams of `units`, in [0, 1); 0 when there are fewer than `n` units."""
    total = len(units) - n + 1
    return 0.0 if total < 1 else 1 - len({tuple(units[i : i + n]) for i in range(total)}) / total


def lower_words(text: str) -> list[str]:
    """The words of `text` in lower case."""
    return [word.lower() for word in words_of(text)]


class NgramRepetition:
    """Reward in (-1, 0]: minus the share of repeated n-grams of a completion.

    `n` is the length of the n-grams, `split` cuts a text into units: `tokenizer.tokenize` for tokens.
    """

    def __init__(self, n: int = 3, split: Callable[[str], Sequence[Hashable]] = lower_words) -> None:
        if not isinstance(n, int) or n < 1:
            raise ConfigError(f"The reward 'repetition' counts n-grams of n={n!r} units: n must be a whole number from 1.")
        self.n, self.split = n, split
        self.__name__ = f"repetition(n={n})"

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        return [-repeated_share(self.split(text_of(completion)), self.n) for completion in completions]
