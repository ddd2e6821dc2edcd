"""Constraint checks: how sentences begin, and what a text must and must not be."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from latentknobs.errors import ConfigError, RewardError
from latentknobs.rewards.text import Messages, Texts, ends_sentence, split_sentences, text_of


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
        self.example_columns = {"opener": ["So", "Once"]}
        self.__name__ = "sentence_constraint"

    def __call__(
        self, prompts: Texts, completions: Texts, opener: Sequence[str | None] | None = None, **columns: Any
    ) -> list[float]:  # fmt: skip
        openers = [self.prefix] * len(completions) if self.prefix else opener or [None] * len(completions)
        return [self._share(*row) for row in zip(prompts, completions, openers, strict=True)]

    def _share(self, prompt: str | Messages, completion: str | Messages, opener: str | None) -> float:
        if not opener:
            raise RewardError(
                f"The reward 'sentence_constraint' has no opener for the prompt {text_of(prompt)[:60]!r}: "
                "fill the column 'opener', or give a prefix, as in 'sentence_constraint:prefix=So'."
            )
        before = prompt if isinstance(prompt, str) else ""  # a reply in a conversation begins its own sentences
        sentences = judged_sentences(before, text_of(completion))
        return sum(begins_with(sentence, opener) for sentence in sentences) / len(sentences) if sentences else 0.0


class TextConstraint:
    """Reward in [0, 1]: the share of the constraints that a completion keeps.

    Args:
        min_words, max_words: bounds of the number of words, as separated by space.
        contains, lacks: a text that must, or must not, be there, whatever the case.
        pattern: a regular expression that the whole completion must match; `.` matches line ends too.
        is_json: the whole completion must be JSON.
    """

    example = "max_words=50"

    def __init__(
        self, min_words: int | None = None, max_words: int | None = None, contains: str | None = None,
        lacks: str | None = None, pattern: str | None = None, is_json: bool = False,
    ) -> None:  # fmt: skip
        self.__name__ = "text_constraint"
        for name, bound in (("min_words", min_words), ("max_words", max_words)):
            if bound is not None and (not isinstance(bound, int) or bound < 0):
                raise ConfigError(f"The reward 'text_constraint' has {name}={bound!r}, which must be a whole number from 0.")
        checks: list[tuple[Any, Callable[[str, Any], bool]]] = [
            (min_words, lambda text, least: len(text.split()) >= least),
            (max_words, lambda text, most: len(text.split()) <= most),
            (contains, lambda text, part: part.casefold() in text.casefold()),
            (lacks, lambda text, part: part.casefold() not in text.casefold()),
            (None if pattern is None else _compiled(pattern), lambda text, whole: whole.fullmatch(text) is not None),
            (is_json or None, lambda text, _: _is_json(text)),
        ]
        self.checks = [(setting, check) for setting, check in checks if setting is not None]
        if not self.checks:
            raise ConfigError(
                "The reward 'text_constraint' has nothing to check. Give at least one of min_words, max_words, contains, "
                "lacks, pattern and is_json, as in 'text_constraint:max_words=50,lacks=sorry'."
            )

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        texts = [text_of(completion) for completion in completions]
        return [sum(check(text, setting) for setting, check in self.checks) / len(self.checks) for text in texts]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"The reward 'text_constraint' has pattern={pattern!r}, not a regular expression: {error}.") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
