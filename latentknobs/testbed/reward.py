"""The testbed's reward: each task has its own, all on about the same scale of 0 to 1."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from latentknobs.errors import RewardError
from latentknobs.rewards.answer import ExactMatch
from latentknobs.rewards.constraint import SentenceConstraint
from latentknobs.rewards.surprise import WordSurprise
from latentknobs.testbed.tasks import SINGLE_TASKS

# Constant temperatures give means of 3.6 to 4.8 nats per word on the packaged LM: 0.2 to 0.7 after scaling.
WORDS_OFFSET, WORDS_SCALE = 3.0, 0.4

_math = ExactMatch(marker="So")
_constraint = SentenceConstraint()


@lru_cache(maxsize=1)
def story_reward() -> WordSurprise:
    """The word reward of the stories: creative and well spelled, by the packaged lexicon, scaled to about 0 to 1."""
    return WordSurprise(scale=WORDS_SCALE, offset=WORDS_OFFSET)


def testbed_reward(
    prompts: list[str],
    completions: list[str],
    task: Sequence[str] | None = None,
    answer: Sequence[Any] | None = None,
    opener: Sequence[str | None] | None = None,
    **columns: Any,
) -> list[float]:
    """The reward of each completion by its row's `task`.

    math: 1 for the right final number, else 0. stories: the word reward. constrained: the mean of the share of sentences
    that keep the rule and the word reward. The columns are those of `testbed.prompts`; a missing or unknown task is a
    RewardError.
    """
    if task is None:
        raise RewardError("The reward 'testbed' needs the columns of testbed.prompts(...): the column 'task' is missing.")
    answers = answer if answer is not None else [None] * len(prompts)
    openers = opener if opener is not None else [None] * len(prompts)
    return [_reward(*row) for row in zip(prompts, completions, task, answers, openers, strict=True)]


testbed_reward.example_columns = {  # type: ignore[attr-defined]
    "task": list(SINGLE_TASKS), "answer": [72], "opener": ["So"],
}  # fmt: skip


def _reward(prompt: str, completion: str, task: str, answer: Any, opener: str | None) -> float:
    if task == "math":
        return _math([prompt], [completion], answer=[answer])[0]
    if task == "stories":
        return story_reward()([prompt], [completion])[0]
    if task == "constrained":
        kept = _constraint([prompt], [completion], opener=[opener])[0]
        return (kept + story_reward()([prompt], [completion])[0]) / 2
    raise RewardError(
        f"The reward 'testbed' does not know the task {task!r} (prompt {prompt[:60]!r}): use {', '.join(SINGLE_TASKS)}."
    )
