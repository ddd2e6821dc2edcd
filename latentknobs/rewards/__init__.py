"""Reward functions with TRL's signature, and the registry that finds them by name.

    reward(prompts: list[str], completions: list[str], **columns) -> list[float | None]

Columns are the other columns of the prompts, one value per completion. More is better; any scale will do. Of a conversation
the reward receives the messages: `prompts` are then lists of messages, and each completion is a list of one assistant message.

None means that the reward does not apply to a completion. An exception, or a value that is no finite number, leaves that one
completion without a score; `Failed("why")` in place of a number says why.

Scores are kept and not asked again until the reward changes. Of a callable that is told from its code and everything that can be
reached from there (`fingerprint`), or from an attribute `version` (text or number, to be changed with all that it depends on).
"""

from latentknobs.rewards.answer import ExactMatch
from latentknobs.rewards.by_name import RewardFunction, resolve_reward, reward_names
from latentknobs.rewards.check import Failed
from latentknobs.rewards.classifier import Classifier
from latentknobs.rewards.command import Command
from latentknobs.rewards.constraint import SentenceConstraint, TextConstraint
from latentknobs.rewards.lexicon import Lexicon
from latentknobs.rewards.math_answer import MathAnswer
from latentknobs.rewards.repetition import NgramRepetition
from latentknobs.rewards.scoring import Score, ScoreCache, check_scored, failure_line, score_all
from latentknobs.rewards.several import Rewards, RewardSpec, resolve_rewards, reward_identity
from latentknobs.rewards.surprise import WordSurprise

__all__ = [
    "Classifier",
    "Command",
    "ExactMatch",
    "Failed",
    "Lexicon",
    "MathAnswer",
    "NgramRepetition",
    "RewardFunction",
    "RewardSpec",
    "Rewards",
    "Score",
    "ScoreCache",
    "SentenceConstraint",
    "TextConstraint",
    "WordSurprise",
    "check_scored",
    "failure_line",
    "resolve_reward",
    "resolve_rewards",
    "reward_identity",
    "reward_names",
    "score_all",
]
