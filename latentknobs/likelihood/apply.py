"""The logits an option really samples from: the fast twin of `reference.apply_values`.

Order-preserving knobs amount to one division and one threshold per row, which the best tokens determine (`row_cut`). Rows whose
cutoff lies beyond those go through the chain of knobs, as do knobs of other kinds.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import is_ordered
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood import reference
from latentknobs.likelihood.row_cut import NO_CUTOFF, Cut
from latentknobs.likelihood.rows import check_shapes, checked, wide


def apply_values(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, context: Context | None = None) -> Tensor:
    """Logits after the knob chain, with its own values in each row.

    Args:
        logits_NV: (N, V) unnormalised log-probabilities of any floating dtype; gradients pass through those kept.
        value_NJ: (N, J) one value per row and knob, in the space's order.
        context: the parts that `space.needs` names; None if it is empty.

    Returns:
        (N, V) logits, float32 or wider; -inf outside the kept set.

    Raises:
        LogitsError: a row is not a distribution.
    """
    logits_NV, space, value_NJ = ordered_tail(wide(logits_NV), space, value_NJ, context)
    value_NJ = value_NJ.to(logits_NV)
    if not space.knobs or not logits_NV.numel():
        return logits_NV
    cut = Cut(logits_NV.detach(), space, value_NJ)
    logits_NV = checked(logits_NV)
    last = [-math.inf if kept == NO_CUTOFF else cut.top_NM[n, min(kept, cut.M) - 1] for n, kept in enumerate(cut.kept)]
    out_NV = logits_NV
    if cut.temperature_N is not None:
        out_NV = out_NV / torch.from_numpy(cut.temperature_N).to(out_NV).unsqueeze(-1)
    out_NV = out_NV.masked_fill(out_NV < torch.tensor(last).to(out_NV).unsqueeze(-1), -torch.inf)
    if cut.greedy:
        row_R = torch.tensor(sorted(cut.greedy), device=out_NV.device)
        first_R1 = torch.tensor([[cut.best.token(n, 0)] for n in sorted(cut.greedy)], device=out_NV.device)
        kept_R1 = out_NV[row_R].gather(-1, first_R1)
        out_NV = out_NV.index_copy(0, row_R, torch.full_like(out_NV[row_R], -torch.inf).scatter(-1, first_R1, kept_R1))
    if cut.beyond_top and not cut.is_whole:
        row_R = torch.tensor(cut.beyond_top, device=out_NV.device)
        out_NV = out_NV.index_copy(0, row_R, reference.apply_values(logits_NV[row_R], space, value_NJ[row_R]))
    return out_NV


def apply_options(logits_NV: Tensor, space: KnobSpace, option_N: Tensor, context: Context | None = None) -> Tensor:
    """(N, V) logits of the distribution that option `option_N[n]` really samples from; LogitsError as for `apply_values`."""
    check_shapes(logits_NV, option_N, "options")
    return apply_values(logits_NV, space, reference.values_of(space, option_N, logits_NV.device), context)


def ordered_tail(
    logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, context: Context | None
) -> tuple[Tensor, KnobSpace, Tensor]:
    """Logits after the last knob that does not preserve order, and the space and values of the knobs that remain."""
    if not (first := _first_ordered(space)):
        return logits_NV, space, value_NJ
    before = KnobSpace(space.knobs[:first], space.grid_KJ, space.order)  # only the knobs of these two are read
    after = KnobSpace(space.knobs[first:], space.grid_KJ, space.order)
    return reference.apply_values(logits_NV, before, value_NJ[:, :first], context), after, value_NJ[:, first:]


@lru_cache(maxsize=256)
def _first_ordered(space: KnobSpace) -> int:
    """The place of the first knob from which on all preserve order."""
    return next((j for j in range(len(space.knobs), 0, -1) if not is_ordered(space.knobs[j - 1])), 0)
