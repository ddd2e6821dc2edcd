"""One exact sampler for rows that each have their own knob values, without sorting rows.

Each row is drawn by inverse CDF from uniforms of its own (seed, row, position): the same logits give the same token
whatever the batch or the padding, and on every device unless the uniform falls into the rounding of a sum. The order of
the CDF is: the 256 best tokens, best first, equal ones by index; then all other tokens by index (in a space that truncates
nothing, all of them by index). A row whose knobs cut inside the 256 best never looks further. Any other row draws from its
uncut distribution first; where that draw falls among the best, which every cut beyond them keeps, it stands, and the cut
need not be known. Only a draw from the rest asks for the exact cut, and is drawn again if it was cut away (rejection; the
redraw is exact too).
"""

import torch
from torch import Tensor

from latentknobs.context import Context
from latentknobs.decoding.uniforms import uniforms
from latentknobs.knob import ScalingKnob, TruncationKnob
from latentknobs.likelihood.apply import apply_values, ordered_tail
from latentknobs.likelihood.cut import Cut, cut_rows
from latentknobs.likelihood.masses import WORK, row_log_masses
from latentknobs.likelihood.rows import rows_where
from latentknobs.likelihood.sorting import first_argmax
from latentknobs.space import KnobSpace

TOKENS, REDRAWS = 1, 2  # streams of uniforms
ROWS = 8  # rows that a CPU looks at as a whole at once
BLOCK = 256  # tokens per step of the CDF over a whole row


@torch.no_grad()
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
    u_N = uniforms(seed, TOKENS, row_N, position_N)
    logits_NV, space, value_NJ = ordered_tail(logits_NV, space, value_NJ, context)
    value_NJ = value_NJ.to(torch.float64 if logits_NV.dtype == torch.float64 else torch.float32)
    if not any(isinstance(knob, TruncationKnob) for knob in space.knobs):
        return _sample_scaled(logits_NV, space, value_NJ, u_N)
    cut = cut_rows(logits_NV, space, value_NJ)
    token_N = _pick(cut, u_N)
    # The one question that the host must wait for on a GPU: work on whole rows is too dear for those that do not need it.
    if cut.is_open_N is not None and len(rows := cut.is_open_N.nonzero().squeeze(-1)):
        again_R = uniforms(seed, REDRAWS, row_N[rows], position_N[rows])
        token_N[rows] = _sample_open(logits_NV[rows], space, value_NJ[rows], cut.rows(rows), u_N[rows], again_R)
    return token_N


def _pick(cut: Cut, u_N: Tensor) -> Tensor:
    """(N,) tokens by inverse CDF over what the cuts keep of the best tokens."""
    return cut.token_NM.gather(-1, _position(cut, u_N).unsqueeze(-1)).squeeze(-1)


def _sample_scaled(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, u_N: Tensor) -> Tensor:
    """Tokens where nothing truncates: the CDF is in index order."""
    temperature_N = torch.ones_like(value_NJ[:, 0]) if space.knobs else torch.ones_like(u_N, dtype=value_NJ.dtype)
    for j, knob in enumerate(space.knobs):
        assert isinstance(knob, ScalingKnob)
        value_N = value_NJ[:, j]
        temperature_N = temperature_N * torch.where(value_N == knob.neutral, 1.0, knob.temperature(value_N))
    is_greedy_N = temperature_N == 0
    token_N = draw(logits_NV, u_N, temperature_N.masked_fill(is_greedy_N, 1.0))
    if (rows := rows_where(is_greedy_N)) is not None:
        token_N[rows] = torch.where(is_greedy_N[rows], first_argmax(logits_NV[rows]), token_N[rows])
    return token_N


def _position(cut: Cut, u_N: Tensor) -> Tensor:
    """(N,) place in the top that the inverse CDF over the kept tokens gives."""
    mass_NM = (cut.top_NM - cut.top_NM[:, :1]).exp().cumsum(-1, dtype=torch.float64)
    last_N1 = cut.count_N.unsqueeze(-1) - 1
    total_N1 = mass_NM.gather(-1, last_N1)
    place_N1 = torch.searchsorted(mass_NM, u_N.unsqueeze(-1) * total_N1, right=True)
    return torch.minimum(place_N1, last_N1).squeeze(-1)


def _sample_open(logits_RV: Tensor, space: KnobSpace, value_RJ: Tensor, cut: Cut, u_R: Tensor, again_R: Tensor) -> Tensor:
    """Tokens of rows whose distribution reaches beyond the top."""
    head_RM = (cut.top_NM - cut.top_NM[:, :1]).exp().cumsum(-1, dtype=torch.float64)
    head_R = head_RM[:, -1]
    total_R = row_log_masses(logits_RV, cut.temperature_N).double().exp().maximum(head_R)
    total_R = torch.where(cut.top_NM[:, -1].isneginf(), head_R, total_R)  # then nothing is left beyond the top
    place_R1 = torch.searchsorted(head_RM, (u_R * total_R).unsqueeze(-1), right=True)
    token_R = cut.token_NM.gather(-1, place_R1.clamp(max=head_RM.shape[1] - 1)).squeeze(-1)
    is_rest_R = place_R1.squeeze(-1) == head_RM.shape[1]
    u_rest_R = ((u_R * total_R - head_R) / (total_R - head_R)).clamp(0, 1)
    at_once = ROWS if logits_RV.device.type == "cpu" else max(len(logits_RV), 1)
    for r in (is_rest_R | cut.is_unknown_N).nonzero().squeeze(-1).split(at_once):
        rest_QV = logits_RV[r].to(cut.top_NM.dtype) / cut.temperature_N[r].unsqueeze(-1)
        rest_QV.scatter_(-1, cut.token_NM[r], -torch.inf)
        is_rest_Q = is_rest_R[r] & rest_QV.amax(-1).isfinite()
        token_Q = torch.where(is_rest_Q, draw(rest_QV, u_rest_R[r]), token_R[r])
        if bool(cut.is_cut_N[r].any()):
            exact_QV = apply_values(logits_RV[r], space, value_RJ[r])
            is_gone_Q = exact_QV.gather(-1, token_Q.unsqueeze(-1)).squeeze(-1).isneginf()
            token_Q = torch.where(is_gone_Q, draw(exact_QV, again_R[r]), token_Q)
        token_R[r] = token_Q
    return token_R


def draw(logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None = None) -> Tensor:
    """(N,) tokens by inverse CDF over whole rows in index order: first the block of tokens, then the token in it.

    Never returns a token of weight 0, unless a whole row has none.
    """
    rows = max(1, WORK // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else max(1, len(logits_NV))
    parts = []
    for first in range(0, len(logits_NV), rows):
        part = slice(first, first + rows)
        parts.append(_draw(logits_NV[part], u_N[part], None if temperature_N is None else temperature_N[part]))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=logits_NV.device)


def _draw(logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None) -> Tensor:
    N, V = logits_NV.shape
    blocks = -(-V // BLOCK)
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    weight_NUB = torch.empty(N, blocks * BLOCK, dtype=dtype, device=logits_NV.device)
    weight_NUB[:, V:] = 0
    best_N1 = logits_NV.amax(-1, keepdim=True).clamp(min=torch.finfo(logits_NV.dtype).min)
    weight_NV = weight_NUB[:, :V]
    weight_NV.copy_(logits_NV).sub_(best_N1)  # widened first: differences of bfloat16 would be bfloat16
    if temperature_N is not None:
        weight_NV.div_(temperature_N.unsqueeze(-1))
    weight_NV.exp_()
    weight_NUB = weight_NUB.view(N, blocks, BLOCK)
    block_NU = weight_NUB.sum(-1).double().cumsum(-1)
    total_N1 = block_NU[:, -1:].contiguous()
    target_N1 = u_N.unsqueeze(-1) * total_N1
    last_N1 = torch.searchsorted(block_NU, total_N1)  # the last block with any weight
    block_N1 = torch.minimum(torch.searchsorted(block_NU, target_N1, right=True), last_N1)
    before_N1 = torch.where(block_N1 > 0, block_NU.gather(-1, (block_N1 - 1).clamp(min=0)), 0.0)
    inside_NB = weight_NUB[torch.arange(N, device=logits_NV.device), block_N1.squeeze(-1)].double().cumsum(-1)
    place_N1 = torch.searchsorted(inside_NB, target_N1 - before_N1, right=True)
    place_N1 = torch.minimum(place_N1, torch.searchsorted(inside_NB, inside_NB[:, -1:].contiguous()))
    return (block_N1 * BLOCK + place_N1).squeeze(-1)
