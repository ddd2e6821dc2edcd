"""The scores of rollouts: from a rollout to the arguments of the reward."""

from collections.abc import Callable, Sequence

from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.rewards import RewardSpec, Score, ScoreCache, score_all


def score_rollouts(
    reward: RewardSpec, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], cache: ScoreCache | None = None, *,
    advance: Callable[[int], None] = lambda items: None,
) -> list[Score]:  # fmt: skip
    """The score of every rollout; its value is None where the reward failed. See `score_all` for the other arguments.

    Args:
        prompts: all prompts, also those that these rollouts do not answer: together they say which columns there are. A
            prompt without some column has None there.
    """
    names = sorted({name for prompt in prompts for name in prompt.columns})
    answered = [prompts[rollout.prompt] for rollout in rollouts]
    return score_all(
        reward,
        [prompt.text if prompt.messages is None else prompt.messages for prompt in answered],
        [rollout.text for rollout in rollouts],
        {name: [prompt.columns.get(name) for prompt in answered] for name in names},
        completion_ids=[rollout.ids for rollout in rollouts],
        cache=cache,
        whole=False,
        advance=advance,
    )
