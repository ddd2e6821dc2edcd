"""Estimators of the gradient of a policy's expected reward, as pure functions of tensors, un-reduced.

The gradient of J = E[r(y)] is E[A grad log p], A being the reward minus a baseline that does not depend on the response:

* score function (Williams 1992), as in arXiv 2603.09065: log p is that of the sampled options, sum_m log pi(k_m | h_m).
* marginal: log p is that of the response, sum_m log sum_k pi(k | h_m) P(y_m | k), the inner sum of Eq. 11 of arXiv 2411.09661.
  It is the expectation of the first over the options that may have drawn the same tokens (Rao-Blackwell; Liu et al., arXiv
  1810.04777), hence has the same mean and no more variance in any direction, whatever the baseline.

Both are sums over the M segments of responses; rows are segments, as in `data/segment_batches.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from latentknobs.tensors import pick


def score_logps(log_pi_MK: Tensor, option_M: Tensor) -> Tensor:
    """(M,) log pi of the sampled option of each segment."""
    return pick(log_pi_MK, option_M)


def marginal_logps(log_pi_MK: Tensor, logps_MK: Tensor) -> Tensor:
    """(M,) log probability of each segment with its option summed out.

    Args:
        logps_MK: log P(segment | option k), -inf where an option removes a token; some option of each segment is finite.
    """
    return (log_pi_MK + logps_MK.to(log_pi_MK.dtype)).logsumexp(-1)


class Surrogate(NamedTuple):
    """What to maximise for each segment."""

    up_M: Tensor  # times an advantage above 0
    down_M: Tensor  # times an advantage below 0
    clipped_M: Tensor  # whether the ratio has left the interval


def surrogate(logp_M: Tensor, sampled_logp_M: Tensor | None = None, clip: float = 0.2) -> Surrogate:
    """The importance ratio of each segment, clipped as in PPO (arXiv 1707.06347, Eq. 7).

    With advantage A it gives min(ratio A, clip(ratio) A). At a ratio of 1 its gradient is that of A log p.

    Args:
        sampled_logp_M: the same under the policy that sampled the segments; None where that is the policy of now: ratios are 1.
        clip: epsilon; ratios beyond 1 - epsilon and 1 + epsilon teach nothing more.
    """
    before_M = logp_M.detach() if sampled_logp_M is None else sampled_logp_M.detach()
    ratio_M = (logp_M - before_M).exp()
    up_M, down_M = ratio_M.clamp(max=1 + clip), ratio_M.clamp(min=1 - clip)
    return Surrogate(up_M, down_M, (ratio_M.detach() - 1).abs() > clip)


def policy_loss(advantage_B: Tensor, up_B: Tensor, down_B: Tensor) -> Tensor:
    """(B,) the loss of responses, from the sums of a `Surrogate` over their segments."""
    return -advantage_B * torch.where(advantage_B > 0, up_B, down_B)
