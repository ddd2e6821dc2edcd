"""Tasks for an instruct model that a user would recognise: prompts by template, and rewards that word salad does not earn.

Templates and subjects of held-out prompts never occur in training prompts. The column `group` names the template.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from latentknobs.rewards.constraint import begins_with
from latentknobs.rewards.surprise import Lexicon
from latentknobs.rewards.text import Texts, complete_words, split_sentences, text_of

Row = dict[str, Any]
Reward = Callable[..., list[float]]

SUBJECTS = (
    (
        "a dog", "a lost key", "an old clock", "two brothers", "a storm", "a garden", "a small boat", "a birthday", "the moon",
        "a bakery", "a red kite", "a farmer", "a long walk", "the first snow", "a tired teacher", "a broken cup", "a train",
        "a hidden door", "a young king", "a quiet village", "a blue bird", "a school trip", "a market", "a singer",
    ),
    (
        "a cat", "the sea", "a forgotten letter", "a doctor", "a hot summer", "a mountain", "an apple tree", "a new friend",
        "a horse", "a bridge", "a painter", "a dark forest", "a wedding", "a lost child", "a secret map", "a winter night",
    ),
)  # fmt: skip
OCCASIONS = (
    (
        "a picnic", "a school party", "saving money", "a rainy day", "a small garden", "learning a language",
        "helping a neighbour", "a birthday present", "better sleep", "a quiet evening", "a family trip", "cooking with eggs",
    ),
    (
        "a summer party", "a long train ride", "a gift for a teacher", "staying healthy", "a cold winter day", "making friends",
        "a lunch box", "an old bicycle", "a day at the beach", "a class project", "decorating a room", "a surprise visit",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Prompts and their reward; of each pair the first part trains and tunes, the second is held out.

    Attributes:
        templates: `{}` is a subject.
        beginning: how the answer begins, written by the prompt.
    """

    templates: tuple[Sequence[str], Sequence[str]]
    subjects: tuple[Sequence[str], Sequence[str]]
    reward: Reward
    max_new_tokens: int
    beginning: str = ""

    def rows(self, held_out: bool, count: int) -> list[Row]:
        """The first so many prompts, each a conversation, in an order that mixes templates and subjects."""
        pairs = [(template, subject) for template in self.templates[held_out] for subject in self.subjects[held_out]]
        random.Random(0).shuffle(pairs)
        begun = [{"role": "assistant", "content": self.beginning}] if self.beginning else []
        return [
            {"prompt": [{"role": "user", "content": template.format(subject)}, *begun], "group": template, "subject": subject}
            for template, subject in pairs[:count]
        ]


def known_words(text: str) -> set[str]:
    """The distinct words of a text that are in the packaged list of common words."""
    lexicon = Lexicon.packaged()
    return {word for word in complete_words(text) if word in lexicon}


class Opener:
    """The share of sentences that begin with a word, times distinct known words over all words (at least 25).

    The first sentence, which the prompt begins with that word, does not count.
    """

    version = "1"

    def __init__(self, opener: str) -> None:
        self.opener, self.__name__ = opener, f"opener_{opener}"

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        return [self._score(text_of(completion)) for completion in completions]

    def _score(self, text: str) -> float:
        sentences, words = split_sentences(f"{self.opener}{text}")[1:], complete_words(text)
        share = sum(begins_with(sentence, self.opener) for sentence in sentences) / max(1, len(sentences))
        return share * len(known_words(text)) / max(len(words), 25)


class Ideas:
    """A numbered list of five: for each line of one to eight mostly known words, the share that no earlier line has used."""

    version = "1"
    wanted = 5
    __name__ = "ideas"

    def __init__(self, beginning: str) -> None:
        self.beginning = beginning

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        return [self._score(self.beginning + text_of(completion)) for completion in completions]

    def _score(self, text: str) -> float:
        seen: set[str] = set()
        earned = 0.0
        for line in re.findall(r"^\d+\. (.+)\n", text, re.MULTILINE)[: self.wanted]:
            words, known = complete_words(f"{line} "), known_words(f"{line} ")
            if 1 <= len(words) <= 8 and len(known) >= 0.7 * len(words):
                earned += len(known - seen) / max(len(words), 3)
            seen |= known
        return min(1.0, earned / self.wanted)


class Names:
    """Five lines with a first name each: the share of them that are well formed, distinct, and not among the usual names."""

    version = "1"
    wanted = 5
    __name__ = "names"
    usual = frozenset(re.findall(  # what the model says most
        r"\w+",
        "alex sarah emily john jack max lily emma michael james mary anna sam luna maya jane leo elara "
        "whiskers buddy bella charlie lucy tom david daniel sophia olivia jake mia rachel maria tim mark "
        "kate "
    ))  # fmt: skip

    def __init__(self, beginning: str) -> None:
        self.beginning = beginning

    def __call__(self, prompts: Texts, completions: Texts, **columns: Any) -> list[float]:
        return [self._score(self.beginning + text_of(completion)) for completion in completions]

    def _score(self, text: str) -> float:
        names = [name.lower() for name in re.findall(r"^\d+\. ([A-Z][a-z]{2,9})\n", text, re.MULTILINE)[: self.wanted]]
        fresh = {name for name in names if name not in self.usual and re.search("[aeiouy]", name)}
        return len(fresh) / self.wanted


def stories(opener: str) -> Task:
    """Stories in which every sentence must begin with a word."""
    return Task(
        (
            [
                f"Write a short story about {{}}. Every sentence must begin with the word {opener}.",
                f"Tell a story about {{}} in which each sentence starts with {opener}.",
                f"Begin every sentence with \"{opener}\". Write a few sentences about {{}}.",
            ],
            [
                f"Please write about {{}}. Start all of your sentences with {opener}.",
                f"{{}}: a story. Each sentence begins with {opener}.",
            ],
        ),
        SUBJECTS, Opener(opener), 48, opener,
    )  # fmt: skip


TASKS = {
    "so": stories("So"),
    "then": stories("Then"),
    "ideas": Task(
        (
            ["Give five very different ideas for {}. Write a numbered list with a few words in each line."],
            ["I need five short ideas for {}, as different as possible. Number them."],
        ),
        OCCASIONS, Ideas("1."), 48, "1.",
    ),
    "names": Task(
        (
            [
                "Invent five unusual first names for {}. One name in each line.",
                "Five new first names for {}, please, one in each line.",
                "Number five first names for {} that nobody has heard before.",
            ],
            ["List five rare first names for {}, one per line.", "I need five unusual names for {}. Write one in each line."],
        ),
        (
            (
                "a hero", "a villain", "a robot", "a dragon", "a princess", "a wizard", "a pirate", "a captain", "a farmer",
                "a detective", "a bear", "a dancer", "a baker", "a cowboy", "a fairy", "a judge", "a monkey", "a nurse", "an owl",
                "a painter", "a sheriff", "a spy", "a teacher", "a tiger",
            ),
            (
                "an elf", "a ghost", "a queen", "a knight", "a giant", "a sailor", "a witch", "a thief", "a soldier", "a prince",
                "a cat", "a doctor", "a gardener", "a hunter", "a mermaid", "a singer",
            ),
        ),
        Names("1."), 40, "1.",
    ),
}  # fmt: skip
