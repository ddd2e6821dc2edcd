"""The scores of `lpo` where every row is a segment of its own: what heads are trained with, without padding.

`lpo` is the definition. It knows segments of several tokens and padded rows; here a segment is one row of a list, whose table is
the sum of its tokens' tables. At 384 options the difference is most of the time of a loss.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from latentknobs.errors import UnreachableTokenError
from latentknobs.learners.lpo.losses import LengthNorm, Objective
from latentknobs.tensors import pick


@dataclass(frozen=True)
class Segments:
    """The M segments of U responses, response by response.

    Attributes:
        logps_MK: log P(segment | option k).
        option_M: the option that each was sampled with.
        base_M: log P(segment) under the LM without knobs.
        mask_US: which places of the responses are segments, M in all.
    """

    logps_MK: Tensor
    option_M: Tensor
    base_M: Tensor
    mask_US: Tensor

    def to(self, device: torch.device) -> "Segments":
        """The same on another device."""
        return Segments(*(getattr(self, field.name).to(device) for field in fields(self)))


def segment_scores(
    objective: Objective, length_norm: LengthNorm, log_pi_MK: Tensor, ref_MK: Tensor | None, segments: Segments
) -> Tensor:
    """(U,) the score of each response, before beta: what `lpo.SCORES` say; for `nll` log pi of its options, without reference.

    Args:
        ref_MK: the reference; None is uniform.

    Raises:
        UnreachableTokenError: `latent`, and the reference cannot produce a response.
    """
    if objective == "latent":
        ratio_M = _marginal_ratios(log_pi_MK, ref_MK, segments)
    else:
        ratio_M = _picked(objective, log_pi_MK, ref_MK, segments)
    score_U = ratio_M.new_zeros(segments.mask_US.shape).masked_scatter(segments.mask_US, ratio_M).sum(-1)
    return score_U if length_norm == "none" else score_U / segments.mask_US.sum(-1).clamp(min=1)


def _marginal_ratios(log_pi_MK: Tensor, ref_MK: Tensor | None, segments: Segments) -> Tensor:
    """(M,) log marginal under pi minus log marginal under the reference."""
    logps_MK = segments.logps_MK.to(log_pi_MK.dtype)
    ref_M = logps_MK.logsumexp(-1) - math.log(logps_MK.shape[-1]) if ref_MK is None else (ref_MK + logps_MK).logsumexp(-1)
    if (lost_M := ref_M.isneginf()).any():
        row = int(segments.mask_US.nonzero()[lost_M][0, 0])
        raise UnreachableTokenError(
            f"The response in row {row} of the batch holds a segment that no option can produce, so its probability is 0 and its "
            "log-ratio undefined. Leave the response out, or give the space an untruncated option."
        )
    joint_MK = log_pi_MK + logps_MK
    lost_M1 = joint_MK.detach().isneginf().all(-1, keepdim=True)
    if lost_M1.any():  # then so is the sum; its gradient is set to zero (torch's would be NaN)
        return joint_MK.masked_fill(lost_M1, 0.0).logsumexp(-1).masked_fill(lost_M1.squeeze(-1), -torch.inf) - ref_M
    return joint_MK.logsumexp(-1) - ref_M


def _picked(objective: Objective, log_pi_MK: Tensor, ref_MK: Tensor | None, segments: Segments) -> Tensor:
    """(M,) of the sampled options."""
    log_pi_M = pick(log_pi_MK, segments.option_M)
    if objective == "nll":
        return log_pi_M
    uniform = -math.log(log_pi_MK.shape[-1])
    ratio_M = log_pi_M - (uniform if ref_MK is None else pick(ref_MK, segments.option_M))
    if objective == "tokens_separate":
        return ratio_M
    sampled_M = pick(segments.logps_MK, segments.option_M)
    return ratio_M + (sampled_M - segments.base_M).to(ratio_M.dtype)
