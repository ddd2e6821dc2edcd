"""Preference pairs: which of a prompt's rollouts is chosen and which is rejected.

The three rules of arXiv 2411.09661: best against worst (4.2, 4.3), correct against incorrect (4.3, math), and, for two
scores, the best by the second among the top k by the first against the worst among the bottom k (4.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from latentknobs.errors import ConfigError, NoPairsError

PairRule = Literal["best_worst", "correct_incorrect", "top_bottom"]


@dataclass(frozen=True)
class Pair:
    """Indices of two rollouts of one prompt."""

    prompt: int
    chosen: int
    rejected: int


def pick_pairs(
    prompt_N: Sequence[int],
    reward_N: Sequence[float],
    rule: PairRule,
    *,
    second_N: Sequence[float] | None = None,
    top: int = 4,
    per_prompt: int = 1,
    seed: int = 0,
) -> list[Pair]:
    """The pairs of N scored rollouts, `prompt_N[n]` being the prompt of rollout n. Prompts whose rollouts tie give none.

    Ties inside a prompt are broken at random, by `seed`.

    Raises:
        ConfigError: top_bottom without a second score.
        NoPairsError: no prompt gave a pair.
    """
    if rule == "top_bottom" and second_N is None:
        raise ConfigError("The pair rule top_bottom compares two scores. Set second_reward, or use best_worst.")
    rng = np.random.default_rng(seed)
    members: dict[int, list[int]] = {}
    for n in rng.permutation(len(prompt_N)).tolist():
        members.setdefault(prompt_N[n], []).append(n)
    pairs: list[Pair] = []
    for prompt in sorted(members):
        rows = members[prompt]
        if rule == "top_bottom":
            assert second_N is not None
            pairs += _top_bottom(prompt, rows, reward_N, second_N, top)
        elif rule == "correct_incorrect":
            pairs += _correct_incorrect(prompt, rows, reward_N)
        else:
            pairs += _best_worst(prompt, rows, reward_N, per_prompt)
    if not pairs:
        raise NoPairsError(_why_none(prompt_N, reward_N, rule))
    return pairs


def _best_worst(prompt: int, rows: list[int], reward_N: Sequence[float], count: int) -> list[Pair]:
    ranked = sorted(rows, key=lambda n: reward_N[n])
    ends = [(ranked[-1 - i], ranked[i]) for i in range(min(count, len(ranked) // 2))]
    return [Pair(prompt, best, worst) for best, worst in ends if reward_N[best] > reward_N[worst]]


def _correct_incorrect(prompt: int, rows: list[int], reward_N: Sequence[float]) -> list[Pair]:
    right = [n for n in rows if reward_N[n] >= 0.5]
    wrong = [n for n in rows if reward_N[n] < 0.5]
    return [Pair(prompt, right[0], wrong[0])] if right and wrong else []


def _top_bottom(prompt: int, rows: list[int], reward_N: Sequence[float], second_N: Sequence[float], top: int) -> list[Pair]:
    ranked = sorted(rows, key=lambda n: (reward_N[n], second_N[n]))
    top = min(top, len(ranked) // 2)
    best = max(ranked[-top:], key=lambda n: second_N[n])
    worst = min(ranked[:top], key=lambda n: second_N[n])
    differ = (reward_N[best], second_N[best]) > (reward_N[worst], second_N[worst])
    return [Pair(prompt, best, worst)] if differ else []


def _why_none(prompt_N: Sequence[int], reward_N: Sequence[float], rule: PairRule) -> str:
    values = np.asarray(reward_N, dtype=float)
    told = (
        f"All {len(values)} rewards are {values[0]:g}"
        if np.ptp(values) == 0
        else (
            f"Within each of the {len(set(prompt_N))} prompts no two rollouts differ under the rule {rule} "
            f"(rewards run from {values.min():g} to {values.max():g})"
        )
    )
    return (
        f"There is nothing to prefer. {told}, so no pair of chosen and rejected can be formed. Try a reward that tells "
        "responses apart, more rollouts per prompt, a wider option grid, or easier (or harder) prompts."
    )
