"""One exact sampler for rows that each have their own knob values, without sorting rows.

Each row is drawn by inverse CDF from uniforms of its own (seed, row, position): the same logits give the same token
whatever the batch or the padding, and on every device unless the uniform falls into the rounding of a sum. The order of
the CDF is: the 256 best tokens, best first, equal ones by index; then all other tokens by index (in a space that truncates
nothing, all of them by index). A row whose knobs cut inside the 256 best never looks further. Any other row draws from its
uncut distribution first; where that draw falls among the best, which every cut beyond them keeps, it stands, and the cut
need not be known. Only a draw from the rest asks for the exact cut, and is drawn again if it was cut away (rejection; the
redraw is exact too).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentknobs.context import Context
from latentknobs.decoding.uniforms import REDRAWS, TOKENS, uniforms
from latentknobs.knob import ScalingKnob, TruncationKnob
from latentknobs.likelihood.apply import apply_values, ordered_tail
from latentknobs.likelihood.cut import TOP, Cut, cut_rows, told
from latentknobs.likelihood.host import HostCut
from latentknobs.likelihood.masses import WORK, row_log_masses
from latentknobs.likelihood.rows import host_sees
from latentknobs.likelihood.sorting import first_argmax, kernels_for
from latentknobs.space import KnobSpace

ROWS = 8  # rows that a CPU looks at as a whole at once
BLOCK = 256  # tokens per step of the CDF over a whole row
SHORT = 4 * BLOCK  # tokens of a row whose CDF is written down as a whole


def sample_values(
    logits_NV: Tensor,
    space: KnobSpace,
    value_NJ: Tensor,
    seed: int,
    row_N: Tensor,
    position_N: Tensor,
    context: Context | None = None,
) -> Tensor:
    """One token per row from the distribution that its own knob values make.

    Args:
        logits_NV: (N, V) of any floating dtype.
        value_NJ: (N, J) a value per row and knob, in the space's order.
        seed, row_N, position_N: keys of the uniforms (see `uniforms`).
        context: what `space.needs` names, for spaces that need anything.

    Returns:
        (N,) token ids.
    """
    logits_NV, space, value_NJ = ordered_tail(logits_NV.detach(), space, value_NJ, context)
    u_N = uniforms(seed, TOKENS, row_N, position_N)
    token_N, cut = first_draw(logits_NV, space, value_NJ, u_N)

    def again(rows: Tensor) -> Tensor:
        return uniforms(seed, REDRAWS, row_N[rows], position_N[rows])

    return finish_draw(token_N, cut, logits_NV, space, value_NJ, u_N, again)


def first_draw(
    logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, u_N: Tensor, kernels: bool = False
) -> tuple[Tensor, Cut | HostCut | None]:
    """(N,) tokens, right in all rows that are not open, and what the knobs cut. On a GPU, nothing here asks the host.

    Args:
        space: order-preserving knobs only; others as in `sample_values`.
        u_N: (N,) in [0, 1).
        kernels: read the rows with Triton kernels, where they can be.
    """
    value_NJ = value_NJ.to(torch.float64 if logits_NV.dtype == torch.float64 else torch.float32)
    if not any(isinstance(knob, TruncationKnob) for knob in space.knobs):
        return _sample_scaled(logits_NV, space, value_NJ, u_N, kernels), None
    if host_sees(logits_NV):
        host = HostCut(logits_NV, space, value_NJ, TOP)
        return torch.from_numpy(np.array(host.draw(u_N.tolist()), np.int64)), host
    cut = cut_rows(logits_NV, space, value_NJ, kernels)
    mass_NM = cut.scaled.mass_RM
    target_N1 = u_N.unsqueeze(-1) * mass_NM.gather(-1, (cut.count_N - 1).unsqueeze(-1))
    place_N1 = torch.searchsorted(mass_NM, target_N1, right=True)  # u < 1: never beyond the last one kept
    return cut.token_NM.gather(-1, place_N1).squeeze(-1), cut


def finish_draw(
    token_N: Tensor, cut: Cut | HostCut | None, logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, u_N: Tensor,
    again: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """The tokens of a first draw, with those of open rows. On a GPU, the one place of a step in which the host waits.

    Args:
        again: uniforms for the redraws of some rows.
    """
    if cut is None or not bool(cut.is_any_open):
        return token_N
    if isinstance(cut, HostCut):
        rows = torch.tensor(cut.open_rows)
        part = told(cut, cut.open_rows)
    else:
        assert cut.is_open_N is not None
        rows = cut.is_open_N.nonzero().squeeze(-1)
        part = cut.rows(rows)
    token_R = _sample_open(logits_NV[rows], space, value_NJ[rows].to(part.top_NM.dtype), part, u_N[rows], again(rows))
    return token_N.index_copy(0, rows, token_R)


def _sample_scaled(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, u_N: Tensor, kernels: bool) -> Tensor:
    """Tokens where nothing truncates: the CDF is in index order."""
    temperature_N: Tensor | None = None
    for j, knob in enumerate(space.knobs):
        assert isinstance(knob, ScalingKnob)
        value_N = value_NJ[:, j]
        own_N = torch.where(value_N == knob.neutral, 1.0, knob.temperature(value_N))
        temperature_N = own_N if temperature_N is None else temperature_N * own_N
    if temperature_N is None:
        return draw(logits_NV, u_N, None, kernels)
    if host_sees(temperature_N) and 0.0 not in temperature_N.tolist():
        return draw(logits_NV, u_N, temperature_N, kernels)
    is_greedy_N = temperature_N == 0
    token_N = draw(logits_NV, u_N, temperature_N.masked_fill(is_greedy_N, 1.0), kernels)
    return torch.where(is_greedy_N, first_argmax(logits_NV), token_N)


def _sample_open(logits_RV: Tensor, space: KnobSpace, value_RJ: Tensor, cut: Cut, u_R: Tensor, again_R: Tensor) -> Tensor:
    """Tokens of rows whose distribution reaches beyond the top."""
    head_RM, top_RM = cut.scaled.mass_RM, cut.top_NM
    head_R = head_RM[:, -1]
    total_R = row_log_masses(logits_RV, cut.temperature_N).double().exp().maximum(head_R)
    total_R = torch.where(top_RM[:, -1].isneginf(), head_R, total_R)  # then nothing is left beyond the top
    place_R1 = torch.searchsorted(head_RM, (u_R * total_R).unsqueeze(-1), right=True)
    token_R = cut.token_NM.gather(-1, place_R1.clamp(max=head_RM.shape[1] - 1)).squeeze(-1)
    is_rest_R, is_uncut_R = place_R1.squeeze(-1) == head_RM.shape[1], cut.is_uncut_N
    is_asked_R = is_rest_R if cut.is_unknown_N is None else is_rest_R | cut.is_unknown_N
    u_rest_R = ((u_R * total_R - head_R) / (total_R - head_R)).clamp(0, 1)
    at_once = ROWS if logits_RV.device.type == "cpu" else max(len(logits_RV), 1)
    for r in is_asked_R.nonzero().squeeze(-1).split(at_once):
        rest_QV = logits_RV[r].to(top_RM.dtype) / cut.temperature_N[r].unsqueeze(-1)
        rest_QV.scatter_(-1, cut.token_NM[r], -torch.inf)
        is_rest_Q = is_rest_R[r] & rest_QV.amax(-1).isfinite()
        token_Q = torch.where(is_rest_Q, draw(rest_QV, u_rest_R[r]), token_R[r])
        if not bool(is_uncut_R[r].all()):
            exact_QV = apply_values(logits_RV[r], space, value_RJ[r])
            is_gone_Q = exact_QV.gather(-1, token_Q.unsqueeze(-1)).squeeze(-1).isneginf()
            token_Q = torch.where(is_gone_Q, draw(exact_QV, again_R[r]), token_Q)
        token_R[r] = token_Q
    return token_R


def draw(logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None = None, kernels: bool = False) -> Tensor:
    """(N,) tokens by inverse CDF over whole rows in index order: first the block of tokens, then the token in it.

    Never returns a token of weight 0, unless a whole row has none.
    """
    N, V = logits_NV.shape
    u_N = u_N.clamp(max=1 - 2.0**-53)
    if V <= SHORT:
        return _draw_short(logits_NV, u_N, temperature_N)
    if kernels and (triton := kernels_for(logits_NV)) is not None:
        return _draw_by_parts(triton, logits_NV, u_N, temperature_N)
    rows = max(1, WORK // V) if logits_NV.device.type == "cpu" else max(1, N)
    parts = []
    for first in range(0, N, rows):
        part = slice(first, first + rows)
        parts.append(_draw(logits_NV[part], u_N[part], None if temperature_N is None else temperature_N[part]))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=logits_NV.device)


def _draw_short(logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None) -> Tensor:
    cdf_NV = _probs(logits_NV, temperature_N).cumsum(-1, dtype=torch.float64)
    place_N1 = torch.searchsorted(cdf_NV, u_N.unsqueeze(-1) * cdf_NV[:, -1:], right=True)
    return place_N1.squeeze(-1).clamp_(max=logits_NV.shape[1] - 1)


def _draw(logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None) -> Tensor:
    N, V = logits_NV.shape
    prob_NV = _probs(logits_NV, temperature_N)
    if V % BLOCK:
        prob_NV = torch.nn.functional.pad(prob_NV, (0, BLOCK - V % BLOCK))
    prob_NUB = prob_NV.view(N, -1, BLOCK)
    block_N, target_N1 = _block(prob_NUB.sum(-1).double(), u_N)
    inside_NB = prob_NUB[torch.arange(N, device=logits_NV.device), block_N]
    return block_N * BLOCK + _place(inside_NB, target_N1)


def _probs(logits_NV: Tensor, temperature_N: Tensor | None) -> Tensor:
    """Widened first: quotients of bfloat16 would be bfloat16."""
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return (logits_NV if temperature_N is None else logits_NV / temperature_N.unsqueeze(-1)).softmax(-1)


def _draw_by_parts(triton: Any, logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None) -> Tensor:
    """`_draw` with kernels: one read of the rows, and then only the block in question."""
    V = logits_NV.shape[1]
    temperature_N = torch.ones_like(u_N, dtype=torch.float32) if temperature_N is None else temperature_N
    best_NU, mass_NU = triton.part_masses(logits_NV, temperature_N)
    best_N1 = best_NU.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    block_N, target_N1 = _block((best_NU - best_N1).exp().double() * mass_NU, u_N)
    token_NB = (block_N * BLOCK).unsqueeze(-1) + torch.arange(BLOCK, device=logits_NV.device)
    logit_NB = logits_NV.gather(-1, token_NB.clamp(max=V - 1)).float().masked_fill(token_NB >= V, -torch.inf)
    inside_NB = (logit_NB / temperature_N.unsqueeze(-1) - best_N1).exp()
    return block_N * BLOCK + _place(inside_NB, target_N1)


def _block(mass_NU: Tensor, u_N: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) the block that the CDF reaches the uniform in, and (N, 1) what is left of the way, inside it."""
    mass_NU = mass_NU.cumsum(-1)
    target_N1 = u_N.unsqueeze(-1) * mass_NU[:, -1:]
    block_N1 = torch.searchsorted(mass_NU, target_N1, right=True).clamp_(max=mass_NU.shape[1] - 1)
    before_N1 = torch.where(block_N1 > 0, mass_NU.gather(-1, (block_N1 - 1).clamp_(min=0)), 0.0)
    return block_N1.squeeze(-1), target_N1 - before_N1


def _place(weight_NB: Tensor, target_N1: Tensor) -> Tensor:
    """(N,) the place inside a block; its sum may round to less than the CDF said, so the last weight is the last place."""
    inside_NB = weight_NB.double().cumsum(-1)
    place_N1 = torch.searchsorted(inside_NB, target_N1, right=True)
    last_N1 = torch.searchsorted(inside_NB, inside_NB[:, -1:].contiguous()).clamp_(max=BLOCK - 1)
    return torch.minimum(place_N1, last_N1).squeeze(-1)
