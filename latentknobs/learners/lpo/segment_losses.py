"""The scores of `losses` where every row is a segment of its own: what heads are trained with, without padding.

`losses` is the definition. It knows segments of several tokens and padded rows; here a segment is one row of a list, whose table
is the sum of its tokens' tables. At 384 options the difference is most of the time of a loss.
"""

import math

from torch import Tensor

from latentknobs.data.segment_batches import Segments
from latentknobs.learners.lpo.losses import unreachable
from latentknobs.learners.lpo.settings import LengthNorm, Objective
from latentknobs.tensors import logsumexp, pick


def segment_scores(
    objective: Objective, length_norm: LengthNorm, log_pi_MK: Tensor, ref_MK: Tensor | None, segments: Segments
) -> Tensor:
    """(U,) the score of each response, before beta: what `losses.SCORES` say; for `nll` log pi of its options, without reference.

    `ref_MK` None is uniform; `segments` have the columns of the objective (`LPO.columns`). UnreachableTokenError as for `latent`.
    """
    if objective == "latent":
        ratio_M = _marginal_ratios(log_pi_MK, ref_MK, segments)
    else:
        ratio_M = _picked(objective, log_pi_MK, ref_MK, segments)
    score_U = segments.sum(ratio_M)
    return score_U if length_norm == "none" else score_U / segments.length_U.clamp(min=1)


def _marginal_ratios(log_pi_MK: Tensor, ref_MK: Tensor | None, segments: Segments) -> Tensor:
    """(M,) log marginal under pi minus log marginal under the reference."""
    logps_MK = segments["logps_NK"].to(log_pi_MK.dtype)
    ref_M = logps_MK.logsumexp(-1) - math.log(logps_MK.shape[-1]) if ref_MK is None else (ref_MK + logps_MK).logsumexp(-1)
    if (lost_M := ref_M.isneginf()).any():
        raise unreachable(int(segments.mask_US.nonzero()[lost_M][0, 0]))
    return logsumexp(log_pi_MK + logps_MK) - ref_M


def _picked(objective: Objective, log_pi_MK: Tensor, ref_MK: Tensor | None, segments: Segments) -> Tensor:
    """(M,) of the sampled options."""
    option_M = segments["option_N"]
    log_pi_M = pick(log_pi_MK, option_M)
    if objective in ("nll", "tokens_printed"):
        return log_pi_M
    uniform = -math.log(log_pi_MK.shape[-1])
    ratio_M = log_pi_M - (uniform if ref_MK is None else pick(ref_MK, option_M))
    if objective == "tokens_separate":
        return ratio_M
    sampled_M = pick(segments["logps_NK"], option_M)
    return ratio_M + (sampled_M - segments["base_N"]).to(ratio_M.dtype)
