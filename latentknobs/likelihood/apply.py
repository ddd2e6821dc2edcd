"""The logits an option really samples from: the fast twin of `reference.apply_values`.

Order-preserving knobs amount to one division and one threshold per row, which the best tokens tell (`cut`). Rows whose
cut lies beyond those go through the chain of knobs, as do knobs of other kinds.
"""

from functools import lru_cache

import torch
from torch import Tensor

from latentknobs.knobs.context import Context
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood import reference
from latentknobs.likelihood.cut import cut_rows
from latentknobs.likelihood.prefix import is_ordered
from latentknobs.tensors import any_or_unknown


def apply_values(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, context: Context | None = None) -> Tensor:
    """Logits after the knob chain, with its own values in each row.

    Args:
        logits_NV: (N, V) unnormalised log-probabilities of any floating dtype; gradients pass through those kept.
        value_NJ: (N, J) one value per row and knob, in the space's order.
        context: what `space.needs` names, for spaces that need anything.

    Returns:
        (N, V) logits, float32 or wider; -inf outside the kept set.
    """
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logits_NV, space, value_NJ = ordered_tail(logits_NV, space, value_NJ, context)
    value_NJ = value_NJ.to(logits_NV)
    if not space.knobs or not len(logits_NV):
        return logits_NV
    with torch.no_grad():
        cut = cut_rows(logits_NV, space, value_NJ)
        last_N1 = cut.top_NM.gather(-1, cut.count_N.unsqueeze(-1) - 1)
        last_N1 = torch.where(cut.is_uncut_N.unsqueeze(-1), -torch.inf, last_N1)
    scaled_NV = logits_NV / cut.temperature_N.unsqueeze(-1) if any_or_unknown(cut.temperature_N != 1) else logits_NV
    out_NV = scaled_NV.masked_fill(scaled_NV < last_N1, -torch.inf)
    if cut.is_greedy_N is not None and len(rows := cut.is_greedy_N.nonzero().squeeze(-1)):
        first_R1 = cut.token_NM[rows, :1]
        only_RV = torch.full_like(out_NV[rows], -torch.inf).scatter(-1, first_R1, scaled_NV[rows].gather(-1, first_R1))
        out_NV = out_NV.index_copy(0, rows, only_RV)
    if cut.is_open_N is not None and len(rows := (cut.is_open_N & ~cut.is_uncut_N).nonzero().squeeze(-1)):
        out_NV = out_NV.index_copy(0, rows, reference.apply_values(logits_NV[rows], space, value_NJ[rows]))
    return out_NV


def apply_options(logits_NV: Tensor, space: KnobSpace, option_N: Tensor, context: Context | None = None) -> Tensor:
    """Logits of the distribution that option `option_N[n]` really samples from, (N, V)."""
    return apply_values(logits_NV, space, space.values_KJ(device=logits_NV.device)[option_N], context)


def ordered_tail(
    logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, context: Context | None
) -> tuple[Tensor, KnobSpace, Tensor]:
    """Logits after the last knob that does not preserve order, and the space and values of the knobs that remain."""
    if not (first := _first_ordered(space)):
        return logits_NV, space, value_NJ
    before = KnobSpace(space.knobs[:first], space.grid_KJ, space.order)  # of these two, only the knobs are looked at
    after = KnobSpace(space.knobs[first:], space.grid_KJ, space.order)
    return reference.apply_values(logits_NV, before, value_NJ[:, :first], context), after, value_NJ[:, first:]


@lru_cache(maxsize=256)
def _first_ordered(space: KnobSpace) -> int:
    """The place of the first knob from which on all preserve order."""
    return next((j for j in range(len(space.knobs), 0, -1) if not is_ordered(space.knobs[j - 1])), 0)
