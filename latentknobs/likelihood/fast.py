"""Likelihood tables without one warper per option: the fast twin of `reference.option_logps`.

An option of order-preserving knobs keeps n tokens of a row's descending order at a temperature T, so that
    log P(y | option) = z_y / T - log(mass of the n best at T)     if fewer than n tokens are above y, else -inf.
The n best are read off the top M tokens; whole-row masses are exact (`masses`). Rows whose cut lies beyond the top are
sorted, and only for the options in question: the result is exact for every row. Other knobs are applied to the logits,
once per distinct value, and what follows them is fast again.
"""

import torch
from torch import Tensor

from latentknobs.knobs.context import Context
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.masses import WORK, log_masses
from latentknobs.likelihood.prefix import is_ordered, product, tree
from latentknobs.likelihood.sorting import first_argmax, sort_descending, top_values
from latentknobs.likelihood.walk import Targets, needs, scale_only, walk

TOP = 256  # M, tokens of a row that are kept in order
CELLS = 1 << 15  # tokens of tops in work at once: 128 rows of 256, and a few MiB with all that is made of them


@torch.no_grad()
def option_logps(logits_NV: Tensor, targets_N: Tensor, space: KnobSpace, context: Context | None = None) -> Tensor:
    """log P(target | option) of every row under every option.

    Args:
        logits_NV: (N, V) the frozen LM's logits, any floating dtype; no gradient is kept.
        targets_N: (N,) token ids.
        context: what `space.needs` names, for spaces that need anything.

    Returns:
        (N, K) nats, float32 or wider; -inf where the option removes the target.
    """
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    if not logits_NV.numel():
        return logits_NV.new_zeros(len(logits_NV), space.K, dtype=dtype)
    if all(is_ordered(knob) for knob in space.knobs):
        return _ordered(logits_NV, targets_N, space)
    size = max(1, 8 * WORK // logits_NV.shape[1])
    parts = []
    for first in range(0, len(logits_NV), size):
        rows = slice(first, first + size)
        part = None if context is None else context.rows(rows)
        parts.append(_dense(logits_NV[rows].to(dtype), targets_N[rows], space, part))
    return torch.cat(parts)


def _dense(logits_RV: Tensor, targets_R: Tensor, space: KnobSpace, context: Context | None) -> Tensor:
    """Applies knobs to whole rows until only order-preserving ones remain."""
    if not space.knobs:
        return logits_RV.log_softmax(-1).gather(-1, targets_R.unsqueeze(-1))
    if all(is_ordered(knob) for knob in space.knobs):
        return _ordered(logits_RV, targets_R, space)
    out_RK = logits_RV.new_empty(len(logits_RV), space.K)
    knob = space.knobs[0]
    for branch in tree(space):
        rest = KnobSpace(space.knobs[1:], tuple(space.grid_KJ[k][1:] for k in branch.ks), space.order)
        value_R = torch.full_like(logits_RV[:, 0], branch.value)
        changed_RV = logits_RV if branch.is_neutral else knob.apply_in(logits_RV, value_R, context)
        out_RK[:, branch.ks] = _dense(changed_RV, targets_R, rest, context)
    return out_RK


def _ordered(logits_NV: Tensor, targets_N: Tensor, space: KnobSpace) -> Tensor:
    need = needs(space)
    best_N, log_mass_NQ = log_masses(logits_NV, [product(key) for key in need.keys])
    logit_N = logits_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1).to(best_N.dtype)
    first_N = first_argmax(logits_NV) if need.greedy else targets_N
    targets = Targets(logit_N, best_N, targets_N == first_N, log_mass_NQ)
    if not need.top:
        return scale_only(space, targets)
    V = logits_NV.shape[1]
    top = top_of(V)
    parts = []
    size = max(1, CELLS // top)
    for first in range(0, len(logits_NV), size):
        rows = slice(first, first + size)
        logps_RK, open_RK = walk(space, top_values(logits_NV[rows], top), targets[rows], whole=top == V)
        if open_RK is not None:
            _finish(logits_NV[rows], targets[rows], space, logps_RK, open_RK)
        parts.append(logps_RK)
    return torch.cat(parts)


def top_of(V: int) -> int:
    """M for a vocabulary: a quarter of a small one, since every table is M wide, and few cuts lie beyond."""
    return V if V <= TOP else min(TOP, max(V // 4, 64))


def _finish(logits_RV: Tensor, targets: Targets, space: KnobSpace, logps_RK: Tensor, open_RK: Tensor) -> None:
    """Fills in the cells that the top left open, from sorted rows."""
    ks = open_RK.any(0).nonzero().squeeze(-1)
    rest = space.select(ks.tolist())
    for rows_r in open_RK.any(-1).nonzero().squeeze(-1).split(max(1, WORK // (2 * logits_RV.shape[1]))):
        sorted_RV = sort_descending(logits_RV[rows_r].to(logps_RK.dtype))
        logps_RK[rows_r.unsqueeze(-1), ks] = walk(rest, sorted_RV, targets[rows_r], whole=True)[0]
