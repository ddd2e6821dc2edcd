"""Rewards against the mean of their prompt, and the words for rewards from which nothing can be learned."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from latentknobs.data.rollouts import Rollout
from latentknobs.errors import NoExamplesError


def by_prompt(prompts: Iterable[int], reward_N: Sequence[float | None]) -> dict[int, dict[int, float]]:
    """By prompt in their order, the rewards of its rollouts by index; what has no reward (None, NaN) is left out."""
    found: dict[int, dict[int, float]] = {}
    for n, (prompt, reward) in enumerate(zip(prompts, reward_N, strict=True)):
        if reward is not None and reward == reward:
            found.setdefault(prompt, {})[n] = reward
    return dict(sorted(found.items()))


def advantages(rollouts: Iterable[Rollout], reward_N: Sequence[float | None]) -> list[tuple[int, int, float]]:
    """Rollout, prompt, and reward minus the mean of its prompt, by prompt; NoExamplesError if no two rewards of one differ."""
    members = by_prompt((rollout.prompt for rollout in rollouts), reward_N)
    if all(min(rewards.values()) == max(rewards.values()) for rewards in members.values()):
        kept = [reward for rewards in members.values() for reward in rewards.values()]
        raise NoExamplesError(nothing_to_learn(kept, len(reward_N), len(members)))
    return [(n, prompt, r - fmean(rewards.values())) for prompt, rewards in members.items() for n, r in rewards.items()]


def nothing_to_learn(rewards: Sequence[float], total: int, prompts: int, rule: str = "") -> str:
    """Why some rewards teach nothing.

    Args:
        rewards: of the rollouts that take part, of `total`.
        prompts: how many prompts these answer.
        rule: how rollouts are compared, e.g. ` under the rule best_worst`.
    """
    if not rewards:
        return (
            f"There is nothing to learn from. The reward failed on all {total} rollouts. The file of scores holds the cause of "
            "each failure: repair the reward."
        )
    missing = f"{total - len(rewards)} of {total} rollouts have no score and take no part. " if len(rewards) < total else ""
    low, high = min(rewards), max(rewards)
    fact = (
        f"All {len(rewards)} rewards are {low:g}"
        if low == high
        else f"Within each of the {prompts} prompts no two rollouts differ{rule} (rewards run from {low:g} to {high:g})"
    )
    return (
        f"There is nothing to learn from. {missing}{fact}. Try a reward that differs between responses, more rollouts per "
        "prompt, a wider option grid, or easier (or harder) prompts."
    )
