"""Constraint checks: how sentences begin, and what a text must and must not be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from latentknobs.errors import BrokenRewardError, ConfigError, RewardError
from latentknobs.rewards.text import Messages, ends_sentence, split_sentences, text_of


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
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        opener: Sequence[str | None] | None = None,
        **columns: Any,
    ) -> list[float]:
        openers = [self.prefix] * len(completions) if self.prefix else opener
        if openers is None:
            raise BrokenRewardError(
                "The reward 'sentence_constraint' does not know how sentences must begin: add a column 'opener' to the prompts, "
                "or give a prefix, as in 'sentence_constraint:prefix=So'."
            )
        return [self._rate(*row) for row in zip(prompts, completions, openers, strict=True)]

    def _rate(self, prompt: str | Messages, completion: str | Messages, opener: str | None) -> float:
        if not opener:
            raise RewardError(
                f"The reward 'sentence_constraint' got no opener for the prompt {text_of(prompt)[:60]!r}: "
                "fill the column 'opener', or give a prefix, as in 'sentence_constraint:prefix=So'."
            )
        before = prompt if isinstance(prompt, str) else ""  # a reply in a conversation begins its own sentences
        sentences = judged_sentences(before, text_of(completion))
        return sum(begins_with(sentence, opener) for sentence in sentences) / len(sentences) if sentences else 0.0


class TextConstraint:
    """Reward in [0, 1]: the share of the given constraints that a completion keeps.

    Args:
        min_words, max_words: bounds of the number of words, as separated by space.
        contains, lacks: a text that must, or must not, be there, whatever the case.
        pattern: a regular expression that the whole completion must match; `.` matches line ends too.
        is_json: the whole completion must be JSON.
    """

    def __init__(
        self,
        min_words: int | None = None,
        max_words: int | None = None,
        contains: str | None = None,
        lacks: str | None = None,
        pattern: str | None = None,
        is_json: bool = False,
    ) -> None:
        self.__name__ = "text_constraint"
        self.checks: list[Callable[[str], bool]] = []
        for name, bound in (("min_words", min_words), ("max_words", max_words)):
            if bound is not None and (not isinstance(bound, int) or bound < 0):
                raise ConfigError(f"The reward 'text_constraint' has {name}={bound!r}, which must be a whole number from 0.")
        if min_words is not None:
            self.checks.append(lambda text: len(text.split()) >= min_words)
        if max_words is not None:
            self.checks.append(lambda text: len(text.split()) <= max_words)
        if contains is not None:
            self.checks.append(lambda text: contains.casefold() in text.casefold())
        if lacks is not None:
            self.checks.append(lambda text: lacks.casefold() not in text.casefold())
        if pattern is not None:
            whole = _compiled(pattern)
            self.checks.append(lambda text: whole.fullmatch(text) is not None)
        if is_json:
            self.checks.append(_is_json)
        if not self.checks:
            raise ConfigError(
                "The reward 'text_constraint' has nothing to check. Give at least one of min_words, max_words, contains, "
                "lacks, pattern and is_json, as in 'text_constraint:max_words=50,lacks=sorry'."
            )

    def __call__(self, prompts: Sequence[str | Messages], completions: Sequence[str | Messages], **columns: Any) -> list[float]:
        texts = [text_of(completion) for completion in completions]
        return [sum(check(text) for check in self.checks) / len(self.checks) for text in texts]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(
            f"The reward 'text_constraint' has pattern={pattern!r}, which is no regular expression: {error}."
        ) from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
