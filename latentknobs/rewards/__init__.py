"""Reward functions with TRL's signature, and the registry that finds them by name.

    reward(prompts: list[str], completions: list[str], **columns) -> list[float | None]

It is called by keyword (`calling`). Columns are the other columns of the prompts, one value per completion. More is better; any
scale will do. Of a conversation the reward receives the messages: `prompts` are then lists of messages, and each completion is
a list of one assistant message.

None means that the reward does not apply to a completion. An exception, or a value that is not a finite number, leaves that one
completion without a score; `Failed("why")` in place of a number says why.

A reward that needs columns names a few values of each in `example_columns`, for `latentknobs rewards check`.

Scores of a reward that was named, or of a callable with an attribute `version`, are kept until it changes (`identity`).
"""

from latentknobs.rewards.answer import ExactMatch
from latentknobs.rewards.classifier import Classifier
from latentknobs.rewards.command import Command
from latentknobs.rewards.constraint import SentenceConstraint, TextConstraint
from latentknobs.rewards.math_answer import MathAnswer
from latentknobs.rewards.repetition import NgramRepetition
from latentknobs.rewards.returned import Failed
from latentknobs.rewards.scoring import Score, ScoreCache, check_scored, failure_line, score_all
from latentknobs.rewards.spec import RewardFunction, Rewards, RewardSpec, resolve_reward, resolve_rewards, reward_names
from latentknobs.rewards.surprise import Lexicon, WordSurprise

__all__ = [
    "Classifier", "Command", "ExactMatch", "Failed", "Lexicon", "MathAnswer", "NgramRepetition", "RewardFunction",
    "RewardSpec", "Rewards", "Score", "ScoreCache", "SentenceConstraint", "TextConstraint", "WordSurprise", "check_scored",
    "failure_line", "resolve_reward", "resolve_rewards", "reward_names", "score_all",
]  # fmt: skip
