"""Rewards of the tasks. Each asks for common words or a form, so that neither word salad nor a repeated line earns much."""

import re
from collections.abc import Sequence
from typing import Any

from latentknobs.rewards.answer import final_number
from latentknobs.rewards.constraint import begins_with
from latentknobs.rewards.surprise import Lexicon
from latentknobs.rewards.text import Texts, complete_words, split_sentences, text_of


def known_words(text: str) -> set[str]:
    """The distinct words of a text that are in the packaged list of common words."""
    lexicon = Lexicon.packaged()
    return {word for word in complete_words(text) if word in lexicon}


def last_number(prompts: Texts, completions: Texts, *, answer: Sequence[str], **columns: Any) -> list[float]:
    """1 where the last number of a response is the answer."""
    return [
        float(final_number(text_of(text), None) == final_number(right, None))
        for text, right in zip(completions, answer, strict=True)
    ]


class Each:
    """A reward that scores each response by itself.

    Args:
        beginning: what the prompt has already written of the answer.
    """

    version = "2"

    def __init__(self, beginning: str = "") -> None:
        self.beginning, self.__name__ = beginning, type(self).__name__.lower()

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        return [self.score(self.beginning + text_of(completion)) for completion in completions]

    def score(self, text: str) -> float:
        """From 0 to 1."""
        raise NotImplementedError


class Opener(Each):
    """The share of sentences (or lines) that begin with a word, times distinct known words over all words (at least 25).

    The first one, which the prompt begins with that word, does not count.
    """

    def __init__(self, opener: str, by_line: bool = False) -> None:
        super().__init__(opener)
        self.by_line = by_line

    def score(self, text: str) -> float:
        """See the class."""
        parts = [line.strip() for line in text.splitlines() if line.strip()] if self.by_line else split_sentences(text)
        share = sum(begins_with(part, self.beginning) for part in parts[1:]) / max(1, len(parts) - 1)
        rest = text.removeprefix(self.beginning)
        return share * len(known_words(rest)) / max(len(complete_words(rest)), 25)


class Listed(Each):
    """A numbered list of five lines: the mean of what each line earns, given the words of the lines before it."""

    wanted = 5

    def score(self, text: str) -> float:
        """See the class."""
        seen: set[str] = set()
        earned = 0.0
        for line in re.findall(r"^\d+\. (.+)\n", text, re.MULTILINE)[: self.wanted]:
            earned += self.line(line, seen)
            seen |= known_words(f"{line} ")
        return min(1.0, earned / self.wanted)

    def line(self, line: str, seen: set[str]) -> float:
        """From 0 to 1."""
        raise NotImplementedError


class Ideas(Listed):
    """A line of one to eight mostly known words earns the share of them that no earlier line has used."""

    shortest, longest, end = 1, 8, ""

    def line(self, line: str, seen: set[str]) -> float:
        """See the class."""
        words, known = complete_words(f"{line} "), known_words(f"{line} ")
        fits = self.shortest <= len(words) <= self.longest and len(known) >= 0.7 * len(set(words)) and line.endswith(self.end)
        return len(known - seen) / max(len(words), 3) if fits else 0.0


class Questions(Ideas):
    """The same for lines of three to twelve words that end in a question mark."""

    shortest, longest, end = 3, 12, "?"


class Names(Each):
    """Five lines with a first name each: the share of them that are well formed, distinct, and not among the usual names."""

    wanted = 5
    usual = frozenset(re.findall(  # what the model says most
        r"\w+",
        "alex sarah emily john jack max lily emma michael james mary anna sam luna maya jane leo elara "
        "whiskers buddy bella charlie lucy tom david daniel sophia olivia jake mia rachel maria tim mark kate",
    ))  # fmt: skip

    def score(self, text: str) -> float:
        """See the class."""
        names = [name.lower() for name in re.findall(r"^\d+\. ([A-Z][a-z]{2,9})\n", text, re.MULTILINE)[: self.wanted]]
        return len({name for name in names if name not in self.usual and re.search("[aeiouy]", name)}) / self.wanted


class Spread(Each):
    """The share of three-word sequences that are not repeats, times the share of known words; of at least 25 words."""

    def score(self, text: str) -> float:
        """See the class."""
        words = complete_words(text)
        threes = list(zip(words, words[1:], words[2:], strict=False))
        known = sum(word in Lexicon.packaged() for word in words)
        return len(set(threes)) / max(len(threes), 1) * known / max(len(words), 25)
