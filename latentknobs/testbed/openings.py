"""First sentences of stories, from the project's own templates: what the story tasks prompt the LM with.

An opening is a list of whole sentences plus, sometimes, the beginning of one more. Only words of `words.py` are used, so the
tiny LM knows all of them. Nothing here is taken from TinyStories.
"""

import random
from dataclasses import dataclass

from latentknobs.testbed import words


@dataclass(frozen=True)
class Opening:
    """Whole `sentences` and the start of the next one (`tail`, no final punctuation, may be empty)."""

    sentences: tuple[str, ...]
    tail: str

    @property
    def text(self) -> str:
        """Its sentences, and the words that begin the next one."""
        return " ".join((*self.sentences, self.tail) if self.tail else self.sentences)


def with_article(noun_phrase: str) -> str:
    """`"old frog"` -> `"an old frog"`."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def story_opening(rng: random.Random) -> Opening:
    """One opening drawn with `rng`: a first sentence, often a second and the start of another."""
    girl = rng.random() < 0.5
    name = rng.choice(words.GIRLS if girl else words.BOYS)
    pronoun = "she" if girl else "he"
    sentences = [_first_sentence(rng, name, "girl" if girl else "boy")]
    if rng.random() < 0.7:
        sentences.append(_second_sentence(rng, name, pronoun))
    tails = (
        "", "", f"{name} loved to", "One day,", f"One day, {name}", f"One day, {pronoun} saw", f"{pronoun.capitalize()} was",
        f"{pronoun.capitalize()} wanted to", "The", f"{name} was very",
    )  # fmt: skip
    return Opening(tuple(sentences), rng.choice(tails))


def _first_sentence(rng: random.Random, name: str, child: str) -> str:
    who = rng.choice((child, rng.choice(words.ANIMALS)))
    hero = with_article(f"{rng.choice(words.ADJECTIVES)} {who}")
    place = rng.choice(words.PLACES)
    return rng.choice(
        (
            f"Once upon a time, there was {hero} named {name}.",
            f"Once upon a time, in the {place}, there was {hero} named {name}.",
            f"Once there was {hero} named {name}.",
            f"One day, {hero} named {name} went to the {place}.",
            f"{name} was {hero} who lived near the {place}.",
            f"There was {hero} named {name} who lived in a {place}.",
        )
    )


def _second_sentence(rng: random.Random, name: str, pronoun: str) -> str:
    place, verb = rng.choice(words.PLACES), rng.choice(words.VERBS)
    thing = with_article(f"{rng.choice(words.OBJECT_ADJECTIVES)} {rng.choice(words.OBJECTS)}")
    subject = rng.choice((name, pronoun.capitalize()))
    return rng.choice(
        (
            f"{subject} loved to {verb} in the {place}.",
            f"{subject} liked to {verb} with {rng.choice(('friends', 'mom', 'dad', 'everyone'))}.",
            f"{subject} had {thing}.",
            f"One day, {name} found {thing} in the {place}.",
            f"One day, {pronoun} went to the {place} and saw {thing}.",
            f"{subject} wanted to {verb} all day.",
        )
    )
