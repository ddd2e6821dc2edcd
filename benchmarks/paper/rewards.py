"""Rewards of the recipes by name, next to those that latentknobs registers."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.paper.novelty import novelty
from benchmarks.paper.problems import InventAndSolve
from benchmarks.paper.worlds import World, data_folder
from latentknobs.rewards import ExactMatch, Lexicon, NgramRepetition, SentenceConstraint, WordSurprise, resolve_reward
from latentknobs.rewards.text import complete_words
from latentknobs.testbed.reward import story_reward

Reward = Callable[..., Sequence[Any]]


class Spelled:
    """The share of a completion's words that the lexicon knows; 0 without words."""

    __name__ = "spelled"

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        found = [complete_words(text) for text in completions]
        return [sum(self.lexicon.surprisal(word) is not None for word in words) / len(words) if words else 0.0 for words in found]


class Variety:
    """Novelty among the completions of the same prompt."""

    __name__ = "variety"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return novelty(prompts, completions)


class Tradeoff:
    """`weight` parts variety, 1 - `weight` parts of a quality."""

    def __init__(self, quality: Reward, weight: float) -> None:
        self.quality, self.weight = quality, weight
        self.__name__ = f"tradeoff({weight:g})"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        quality = self.quality(prompts, completions, **columns)
        return [self.weight * v + (1 - self.weight) * q for v, q in zip(novelty(prompts, completions), quality, strict=True)]


def lexicon_of(world: World) -> Lexicon:
    """Word counts to spell by: of the TinyStories sample where the world's texts come from it, else the packaged ones."""
    if not world.name.endswith(":tinystories"):
        return Lexicon.packaged()
    return Lexicon.from_text((data_folder() / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8"))


def make_reward(name: str, world: World) -> Reward:
    """The reward of a recipe: `repeats`, `right`, `kept`, `story`, `creative`, `spelled`, `variety`, `solved`, `new`,
    `invent_and_solve`, `tradeoff:WEIGHT:QUALITY`, or any that is registered.
    """
    if name.startswith("tradeoff:"):
        weight, _, quality = name.removeprefix("tradeoff:").partition(":")
        return Tradeoff(make_reward(quality, world), float(weight))
    made: dict[str, Callable[[], Reward]] = {
        "repeats": lambda: NgramRepetition(3),
        "right": lambda: ExactMatch(marker="So"),
        "kept": SentenceConstraint,
        "story": story_reward,
        "creative": lambda: WordSurprise(lexicon_of(world)),
        "spelled": lambda: Spelled(lexicon_of(world)),
        "variety": Variety,
        "invent_and_solve": InventAndSolve,
        "solved": lambda: InventAndSolve("solved"),
        "new": lambda: InventAndSolve("new"),
    }
    return made[name]() if name in made else resolve_reward(name)
