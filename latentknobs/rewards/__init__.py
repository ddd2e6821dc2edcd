"""Reward functions with TRL's signature, and the registry that finds them by name.

    reward(prompts: list[str], completions: list[str], **columns) -> list[float]

Columns are the other columns of the prompts, one value per completion. More is better; any scale will do.
"""

from latentknobs.rewards.answer import ExactMatch
from latentknobs.rewards.check import check_rewards
from latentknobs.rewards.constraint import SentenceConstraint
from latentknobs.rewards.lexicon import Lexicon
from latentknobs.rewards.registry import RewardFunction, resolve_reward, reward_names
from latentknobs.rewards.repetition import NgramRepetition
from latentknobs.rewards.surprise import WordSurprise

__all__ = [
    "ExactMatch",
    "Lexicon",
    "NgramRepetition",
    "RewardFunction",
    "SentenceConstraint",
    "WordSurprise",
    "check_rewards",
    "resolve_reward",
    "reward_names",
]
