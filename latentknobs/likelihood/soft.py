"""Differentiable likelihoods: log P(y | values) with a gradient for the values of the knobs.

A `ScalingKnob` divides, exactly as in decoding. A `TruncationKnob` takes alpha nats per unit of `excess` off the logits of what
it would remove; as alpha grows this becomes the cut of decoding. All in log space, so that nothing is added to a probability and
every row sums to one. (The published soft top-p, arXiv 2510.26697, multiplies probabilities by exp(-alpha relu(c - P)) with c
including the token itself: where p_max >= P the factor cancels, and with it the gradient.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from latentknobs.errors import ConfigError, UnreachableTokenError
from latentknobs.knobs.columns import GAP, Columns
from latentknobs.knobs.knob import ScalingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.tensors import pick


class Target(NamedTuple):
    """The tokens whose likelihood is wanted: (N,) their logits, and the columns that they are in."""

    logit_N: Tensor
    column_N: Tensor


def check_soft(space: KnobSpace) -> None:
    """Refuses a space with a knob that has no differentiable form: a ConfigError names the knob."""
    for knob in space.knobs:
        is_cut = isinstance(knob, TruncationKnob) and type(knob).excess is not TruncationKnob.excess
        if not (is_cut or (isinstance(knob, ScalingKnob) and type(knob).apply is ScalingKnob.apply)):
            raise ConfigError(
                f"The knob {knob.name!r} has no differentiable form, so no continuous value of it can be learned. Scaling knobs "
                "(temperature) have one, and truncations that define `excess` (top_p, min_p). Leave it out, or use a "
                "learner that chooses among options, e.g. lpo."
            )


def soft_logps(columns: Columns, target: Target, space: KnobSpace, value_NJ: Tensor, alpha: float) -> Tensor:
    """(N,) log P(target | values) in nats, with gradient for the values.

    Args:
        columns: of the LM's own logits; no gradient is kept for these.
        value_NJ: (N, J) values in the space's order.
        alpha: steepness of the cuts, in nats per unit of excess; above 0.
    """
    soft_NC, cut_NC, temperature_N = soft_chain(columns, space, value_NJ, alpha)
    total_N = Columns(soft_NC, columns.count_C).log_mass_NC.logsumexp(-1)
    return target.logit_N / temperature_N - pick(cut_NC, target.column_N) - total_N


def soft_chain(columns: Columns, space: KnobSpace, value_NJ: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits after the chain of knobs with soft cuts, what these took off, and (N,) what they were divided by."""
    if not alpha > 0:
        raise ConfigError(f"alpha={alpha!r} does not cut: the steepness of a soft cut must be above 0, e.g. 30.")
    logit_NC, count_C = columns.logit_NC.to(value_NJ.dtype), columns.count_C
    cut_NC, total_N = torch.zeros_like(logit_NC), torch.ones_like(value_NJ[:, 0])
    for knob, value_N in zip(space.knobs, value_NJ.unbind(-1), strict=True):
        if isinstance(knob, ScalingKnob):
            temperature_N = knob.temperature(value_N)
            logit_NC, cut_NC = (part / temperature_N.unsqueeze(-1) for part in (logit_NC, cut_NC))
            total_N = total_N * temperature_N
        else:
            assert isinstance(knob, TruncationKnob)
            excess_NC = _tied(logit_NC.detach(), knob.excess(Columns(logit_NC, count_C), value_N))
            penalty_NC = alpha * torch.where((value_N == knob.neutral).unsqueeze(-1), 0.0, excess_NC.clamp(min=0))
            logit_NC, cut_NC = logit_NC - penalty_NC, cut_NC + penalty_NC
    return logit_NC, cut_NC, total_N


def _tied(logit_NC: Tensor, excess_NC: Tensor) -> Tensor:
    """Equal tokens lie equally far beyond the cut: as far as the first of them, as in decoding."""
    place_C = torch.arange(logit_NC.shape[-1], device=logit_NC.device)
    is_new_NC = torch.ones_like(logit_NC, dtype=torch.bool)
    is_new_NC[:, 1:] = logit_NC[:, 1:] < logit_NC[:, :-1]
    return excess_NC.gather(-1, torch.where(is_new_NC, place_C, 0).cummax(-1).values)


def check_reachable(best_N: Tensor, target_N: Tensor) -> None:
    """UnreachableTokenError if the LM itself cannot produce a target: no value of any knob can. Both are logits."""
    if (lost_N := target_N <= best_N - GAP / 2).any():
        raise UnreachableTokenError(
            f"Token {int(lost_N.nonzero()[0])} of the text has probability 0 under the LM itself, so no knob value can produce "
            "it. Leave the response out."
        )
