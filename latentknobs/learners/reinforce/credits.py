"""Rewards by position: each choice earns what comes after it, instead of a share in the reward of the whole response.

With r(n) the reward of the first n of T tokens, token s adds r(s + 1) - r(s), and the choice at token t earns its return

    G_t = sum over s >= t of discount^(s - t) (r(s + 1) - r(s)).

At discount 1 that is r(T) - r(t), the reward of the response over that of its beginning, which no later choice changes: a
baseline, so the expected gradient is that of whole rewards. Below 1 far effects count less: a biased gradient with less variance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from latentknobs.data.columns import Column, Reading
from latentknobs.data.rollouts import Rollout
from latentknobs.learners.reinforce.advantages import baselined
from latentknobs.learners.reinforce.settings import Baseline


@dataclass(frozen=True)
class Credited(Rollout):
    """A rollout with an advantage for each of its tokens; 0 teaches nothing."""

    advantages: tuple[float, ...] = ()

    @classmethod
    def of(cls, rollout: Rollout, advantages: Sequence[float]) -> "Credited":
        """A rollout with these advantages."""
        return cls(**asdict(rollout), advantages=tuple(advantages))


def _advantages(reading: Reading) -> Tensor:
    rollout = reading.rollout
    credit_T = rollout.advantages if isinstance(rollout, Credited) else (0.0,) * len(rollout.ids)
    return torch.tensor(credit_T, dtype=torch.float64)


ADVANTAGES: Mapping[str, Column] = {"advantage_N": Column(_advantages, "first")}
"""The advantage of the choice at the segment's first token."""


def returns(rewards: Sequence[float | None], discount: float) -> list[float]:
    """(T,) what the choice at each token earns.

    Args:
        rewards: (T + 1) of the first 0, 1, ... T tokens; None where the reward failed, as if nothing had been added there.
    """
    before, added = next((reward for reward in rewards if reward is not None), 0.0), []
    for reward in rewards[1:]:
        added.append(0.0 if reward is None else reward - before)
        before = before if reward is None else reward
    found, later = [], 0.0
    for one in reversed(added):
        later = one + discount * later
        found.append(later)
    return found[::-1]


def position_advantages(return_PRT: Tensor, baseline: Baseline, normalise: bool) -> Tensor:
    """(P, R, T) float64 returns over the baseline of their position; 0 where there is none.

    Args:
        return_PRT: of R responses to each of P prompts; NaN after a response's end, and where it has no reward.
        baseline: as in `baselined`, among the responses that are as long.
        normalise: divide by the root mean square of all.
    """
    count_P1T = return_PRT.isfinite().sum(1, keepdim=True)
    others_PRT = (return_PRT.nansum(1, keepdim=True) - return_PRT) / (count_P1T - 1)  # alone: 0 / 0, NaN
    by_position = zip(return_PRT.unbind(-1), others_PRT.unbind(-1), strict=True)
    found_PRT = torch.stack([baselined(return_PR, others_PR, baseline) for return_PR, others_PR in by_position], dim=-1)
    found_PRT[found_PRT.abs() < 1e-12] = 0.0  # equal returns, whose mean is rounded
    if normalise:
        found_PRT = found_PRT / found_PRT.square().nanmean().sqrt().clamp(min=1e-8)
    return found_PRT.nan_to_num(0.0)
