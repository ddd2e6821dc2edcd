"""From the rewards of a step to advantages: parallel budgets, and baselines. In float64; a missing reward is NaN and stays so.

Under a parallel budget B, a prompt earns f(S) for a group S of B responses: their best reward (Pass@B where rewards are 0 or
1), or what the majority answers. Of R responses that were sampled alike, each group of B is as good a sample as any other, so the
value of response i is the mean of f over the groups that hold it, and the mean over the groups without it does not depend on i:
its leave-one-out baseline (for f = max: Walder and Karkhanis, arXiv 2505.15201). B = 1 is the reward itself.
"""

from collections.abc import Hashable, Sequence
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.learners.reinforce.settings import Baseline, Group

MOST_GROUPS = 20_000  # of a prompt's responses


def group_rewards(reward_R: Tensor, size: int, rule: Group, vote_R: Sequence[Hashable] = ()) -> tuple[Tensor, Tensor]:
    """(C, R) bool, which responses are in each group of `size`, and (C,) what each group earns.

    Args:
        rule: `best`, or `majority`: the mean reward of the responses with the most frequent vote; of several most frequent ones
            the mean.
        vote_R: what each response answers, for `majority`; None is no vote.

    Raises:
        ConfigError: more than 20,000 groups.
    """
    R = len(reward_R)
    if comb(R, size) > MOST_GROUPS:
        raise ConfigError(
            f"There are {comb(R, size):,} groups of {size} among {R} responses to a prompt, more than {MOST_GROUPS:,}. Lower "
            "rollouts, or choose another parallel budget."
        )
    member_CB = torch.tensor(list(combinations(range(R), size)))
    is_in_CR = torch.zeros(len(member_CB), R, dtype=torch.bool).scatter_(1, member_CB, True)
    if rule == "best" or size == 1:
        return is_in_CR, reward_R[member_CB].amax(-1)
    return is_in_CR, torch.stack([_majority(reward_R, member_B, vote_R) for member_B in member_CB.tolist()])


def _majority(reward_R: Tensor, members: Sequence[int], vote_R: Sequence[Hashable]) -> Tensor:
    ballots: dict[Hashable, list[int]] = {}
    for r in members:
        if vote_R[r] is not None:
            ballots.setdefault(vote_R[r], []).append(r)
    if not ballots:
        return reward_R[list(members)].mean()
    most = max(map(len, ballots.values()))
    return torch.stack([reward_R[rows].mean() for rows in ballots.values() if len(rows) == most]).mean()


def values(reward_R: Tensor, size: int = 1, rule: Group = "best", vote_R: Sequence[Hashable] = ()) -> tuple[Tensor, Tensor]:
    """(R,) mean reward of the groups that hold each response, and (R,) of those that do not: its leave-one-out baseline.

    Where a group takes all responses, the baseline is what the others earn without it. Both are NaN for a missing reward, and
    everywhere if too few rewards are left for a group and a baseline.
    """
    out_2R = torch.full((2, len(reward_R)), torch.nan, dtype=torch.float64)
    kept = reward_R.isfinite().nonzero().squeeze(-1)
    known_R, n = reward_R.double()[kept], len(kept)
    if n < max(size, 2):
        return out_2R[0], out_2R[1]
    votes = [vote_R[r] for r in kept.tolist()] if len(vote_R) else ()
    is_in_CR, earned_C = group_rewards(known_R, size, rule, votes)
    inside_CR = is_in_CR.double()
    out_2R[0, kept] = earned_C @ inside_CR / inside_CR.sum(0)
    if size == n:
        without_CR, others_C = group_rewards(known_R, size - 1, rule, votes)
        out_2R[1, kept] = others_C @ (~without_CR).double()  # one group leaves out each response
    else:
        out_2R[1, kept] = earned_C @ (1 - inside_CR) / (1 - inside_CR).sum(0)
    return out_2R[0], out_2R[1]


def baselined(value_PR: Tensor, without_PR: Tensor, baseline: Baseline) -> Tensor:
    """(P, R) advantages of responses, by prompt, from `values`.

    Args:
        baseline: `none`; `mean` over the batch, the response itself included, which shrinks the gradient's expectation by its
            share; `leave_one_out`, unbiased (RLOO, arXiv 2402.14740); `group`: minus the prompt's mean, over the prompt's
            standard deviation (GRPO, arXiv 2402.03300), which weighs prompts by how rarely they vary.
    """
    if baseline == "none":
        return value_PR
    if baseline == "mean":
        return value_PR - value_PR.nanmean()
    if baseline == "leave_one_out":
        return value_PR - without_PR
    centred_PR = value_PR - value_PR.nanmean(-1, keepdim=True)
    deviation_P1 = centred_PR.square().nanmean(-1, keepdim=True).sqrt()
    return centred_PR / deviation_P1.clamp(min=1e-8)


def varies(value_PR: Tensor, without_PR: Tensor) -> Tensor:
    """(P,) whether a prompt's responses differ in worth; under a baseline of their own, the others teach nothing."""
    return ((value_PR - without_PR).abs() > 1e-12).any(-1)
