"""Preference pairs: which of a prompt's rollouts is chosen and which is rejected.

The three rules of arXiv 2411.09661: best against worst (4.2, 4.3), correct against incorrect (4.3, math), and, for two
scores, the best by the second among the top k by the first against the worst among the bottom k (4.4).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from latentknobs.data.examples import Pair
from latentknobs.errors import ConfigError, NoPairsError
from latentknobs.learners.lpo.settings import PairRule
from latentknobs.learners.rewards import nothing_to_learn

Scores = Mapping[int, float]  # by index of the rollout


def pick_pairs(
    prompt_N: Sequence[int],
    reward_N: Sequence[float | None],
    rule: PairRule,
    *,
    second_N: Sequence[float | None] | None = None,
    top: int = 4,
    per_prompt: int = 1,
    seed: int = 0,
) -> list[Pair]:
    """The pairs of N scored rollouts, `prompt_N[n]` being the prompt of rollout n. Prompts whose rollouts tie have no pair.

    Ties inside a prompt are broken at random, by `seed`. A rollout whose reward failed (None) is in no pair; for top_bottom,
    nor is one whose second score failed.

    Raises:
        ConfigError: top_bottom without a second score.
        NoPairsError: no prompt gave a pair.
    """
    if rule == "top_bottom" and second_N is None:
        raise ConfigError("The pair rule top_bottom compares two scores. Set second_reward, or use best_worst.")
    rng = np.random.default_rng(seed)
    first = _present(reward_N)
    second = _present(() if second_N is None else second_N)
    members: dict[int, list[int]] = {}
    for n in rng.permutation(len(prompt_N)).tolist():
        if n in first and (rule != "top_bottom" or n in second):
            members.setdefault(prompt_N[n], []).append(n)
    pairs: list[Pair] = []
    for prompt in sorted(members):
        rows = members[prompt]
        if rule == "top_bottom":
            pairs += _top_bottom(prompt, rows, first, second, top)
        elif rule == "correct_incorrect":
            pairs += _correct_incorrect(prompt, rows, first)
        else:
            pairs += _best_worst(prompt, rows, first, per_prompt)
    if not pairs:
        kept = [first[n] for rows in members.values() for n in rows]
        raise NoPairsError(nothing_to_learn(kept, len(prompt_N), len(members), f" under the rule {rule}"))
    return pairs


def _present(score_N: Sequence[float | None]) -> dict[int, float]:
    """The scores that are not missing, by rollout."""
    return {n: value for n, value in enumerate(score_N) if value is not None and not np.isnan(value)}


def _best_worst(prompt: int, rows: list[int], reward_N: Scores, count: int) -> list[Pair]:
    ranked = sorted(rows, key=lambda n: reward_N[n])
    ends = [(ranked[-1 - i], ranked[i]) for i in range(min(count, len(ranked) // 2))]
    return [Pair(prompt, best, worst) for best, worst in ends if reward_N[best] > reward_N[worst]]


def _correct_incorrect(prompt: int, rows: list[int], reward_N: Scores) -> list[Pair]:
    right = [n for n in rows if reward_N[n] >= 0.5]
    wrong = [n for n in rows if reward_N[n] < 0.5]
    return [Pair(prompt, right[0], wrong[0])] if right and wrong else []


def _top_bottom(prompt: int, rows: list[int], reward_N: Scores, second_N: Scores, top: int) -> list[Pair]:
    ranked = sorted(rows, key=lambda n: (reward_N[n], second_N[n]))
    top = min(top, len(ranked) // 2)
    if top < 1:  # fewer than two rollouts with both scores
        return []
    best = max(ranked[-top:], key=lambda n: second_N[n])
    worst = min(ranked[:top], key=lambda n: second_N[n])
    differ = (reward_N[best], second_N[best]) > (reward_N[worst], second_N[worst])
    return [Pair(prompt, best, worst)] if differ else []
