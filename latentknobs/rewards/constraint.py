"""How many sentences of a completion begin the way they must."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentknobs.errors import RewardError
from latentknobs.rewards.text import ends_sentence, split_sentences


def judged_sentences(prompt: str, completion: str) -> list[str]:
    """The sentences of `completion` whose beginning the completion wrote itself, and wrote whole.

    If the prompt stops inside a sentence, its continuation is left out. An incomplete last sentence counts as soon as its
    first word is finished (something follows it), because how it begins is then known.
    """
    sentences = split_sentences(completion)
    if not ends_sentence(prompt):
        sentences = sentences[1:]
    if sentences and sentences[-1].isalpha() and completion[-1:].isalpha():
        sentences = sentences[:-1]
    return sentences


def begins_with(sentence: str, opener: str) -> bool:
    """Whether `sentence` begins with the words of `opener`, whatever the case; "Some" does not begin with "So"."""
    start = sentence.lstrip("\"'([").casefold()
    return start.startswith(opener.casefold()) and not start[len(opener) : len(opener) + 1].isalnum()


class SentenceConstraint:
    """Reward in [0, 1]: the share of the completion's sentences that begin with the column `opener`.

    `prefix` sets one opener for all rows; then no column is needed. No sentence to judge gives 0.
    """

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = prefix
        self.__name__ = "sentence_constraint"

    def __call__(
        self, prompts: list[str], completions: list[str], opener: Sequence[str | None] | None = None, **columns: Any
    ) -> list[float]:
        openers = [self.prefix] * len(completions) if self.prefix else opener
        if openers is None:
            raise RewardError(
                "The reward 'sentence_constraint' does not know how sentences must begin: add a column 'opener' to the prompts, "
                "or give a prefix, as in 'sentence_constraint:prefix=So'."
            )
        return [self._rate(i, *row) for i, row in enumerate(zip(prompts, completions, openers, strict=True))]

    def _rate(self, index: int, prompt: str, completion: str, opener: str | None) -> float:
        if not opener:
            raise RewardError(
                f"The reward 'sentence_constraint' got no opener for row {index} (prompt {prompt[:60]!r}): "
                "fill the column 'opener', or give a prefix, as in 'sentence_constraint:prefix=So'."
            )
        sentences = judged_sentences(prompt, completion)
        return sum(begins_with(sentence, opener) for sentence in sentences) / len(sentences) if sentences else 0.0
