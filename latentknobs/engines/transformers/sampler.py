"""One exact sampler for rows that each have their own knob values, without sorting rows.

Each row is drawn by inverse CDF from uniforms of its own (seed, row, position): the same logits give the same token
whatever the batch or the padding, and on every device unless the uniform falls into the rounding of a sum. The order of
the CDF is: the 256 best tokens, best first, equal ones by index; then all other tokens by index (in a space that truncates
nothing, all of them by index). A row whose knobs cut inside the 256 best never looks further. Any other row draws from its
uncut distribution first; where that draw falls among the best, which every cut beyond them keeps, it stands, and the cut
need not be known. Only a draw from the rest asks for the exact cut, and is drawn again if it was cut away (rejection; the
redraw is exact too).
"""

import numpy as np
import torch
from torch import Tensor

from latentknobs.engines.transformers.inverse import draw
from latentknobs.engines.uniforms import REDRAWS, TOKENS, uniforms
from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ScalingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood import reference
from latentknobs.likelihood.apply import ordered_tail
from latentknobs.likelihood.row_cut import Cut
from latentknobs.likelihood.rows import first_argmax
from latentknobs.tensors import any_or_unknown, host_sees, pick

ROWS, WORK = 8, 1 << 18  # rows that are looked at as a whole at once: more where they are short


def sample_values(
    logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, seed: int | Tensor, row_N: Tensor, position_N: Tensor,
    context: Context | None = None,
) -> Tensor:  # fmt: skip
    """(N,) one token per row from the distribution that its own knob values make; LogitsError if a row is not a distribution.

    Args:
        logits_NV: (N, V) of any floating dtype.
        value_NJ: (N, J) a value per row and knob, in the space's order.
        seed, row_N, position_N: keys of the uniforms (see `uniforms`).
        context: what `space.needs` names, for spaces that need anything.
    """
    logits_NV, space, value_NJ = ordered_tail(logits_NV.detach(), space, value_NJ, context)
    value_NJ = value_NJ.to(torch.float64 if logits_NV.dtype == torch.float64 else torch.float32)
    u_N = uniforms(seed, TOKENS, row_N, position_N)
    if not any(isinstance(knob, TruncationKnob) for knob in space.knobs):
        return _sample_scaled(logits_NV, space, value_NJ, u_N)
    cut = Cut(logits_NV, space, value_NJ, u_N)
    tokens, rest = cut.draw(cut.u_N.tolist())
    token_N = torch.from_numpy(np.array(tokens, np.int64)).to(logits_NV.device, non_blocking=True)
    if not (rest or cut.undetermined):
        return token_N
    at_once = max(ROWS, WORK // logits_NV.shape[1]) if host_sees(logits_NV) else max(len(tokens), 1)
    for rows in _chunks(list(rest), at_once):
        rest_RV = cut.scaled(rows).scatter_(-1, cut.best.tokens(rows).to(token_N.device), -torch.inf)
        u_R = torch.tensor([rest[n] for n in rows], dtype=torch.float64, device=token_N.device)
        row_R, is_left_R = torch.tensor(rows, device=token_N.device), rest_RV.amax(-1).isfinite()
        token_N[row_R[is_left_R]] = draw(rest_RV[is_left_R], u_R[is_left_R])
    # tokens of rows whose cutoff is not known: all others are kept whatever it is
    unsure = [n for n in cut.beyond_top if n in rest or n in cut.undetermined] if not cut.is_whole else []
    for rows in _chunks(unsure, at_once):
        row_R = torch.tensor(rows, device=token_N.device)
        exact_RV = reference.apply_values(cut.logits_NV[row_R], space, value_NJ[row_R])
        is_gone_R = pick(exact_RV, token_N[row_R]).isneginf()
        gone_R = row_R[is_gone_R]
        seed_R = seed[gone_R] if isinstance(seed, Tensor) else seed
        token_N[gone_R] = draw(exact_RV[is_gone_R], uniforms(seed_R, REDRAWS, row_N[gone_R], position_N[gone_R]))
    return token_N


def _sample_scaled(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, u_N: Tensor) -> Tensor:
    """Tokens where nothing truncates: the CDF is in index order."""
    temperature_N: Tensor | None = None
    for knob, value_N in zip(space.knobs, value_NJ.unbind(-1), strict=True):
        assert isinstance(knob, ScalingKnob)
        own_N = torch.where(value_N == knob.neutral, 1.0, knob.divisor(value_N))
        temperature_N = own_N if temperature_N is None else temperature_N * own_N
    if temperature_N is None or not any_or_unknown(is_greedy_N := temperature_N == 0):
        return draw(logits_NV, u_N, temperature_N)
    token_N = draw(logits_NV, u_N, temperature_N.masked_fill(is_greedy_N, 1.0))
    return torch.where(is_greedy_N, first_argmax(logits_NV), token_N)


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]
