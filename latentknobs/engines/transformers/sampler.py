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

import numpy as np
import torch
from torch import Tensor

from latentknobs.engines.transformers.inverse import draw
from latentknobs.engines.transformers.uniforms import REDRAWS, TOKENS, uniforms
from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ScalingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.apply import apply_values, ordered_tail
from latentknobs.likelihood.cut import TOP, Cut, cut_rows, told
from latentknobs.likelihood.host import HostCut
from latentknobs.likelihood.masses import row_log_masses
from latentknobs.likelihood.sorting import first_argmax
from latentknobs.tensors import host_sees

ROWS, WORK = 8, 1 << 18  # rows that a CPU looks at as a whole at once: more where they are short


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


def first_draw(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, u_N: Tensor) -> tuple[Tensor, Cut | HostCut | None]:
    """(N,) tokens, right in all rows that are not open, and what the knobs cut. On a GPU, nothing here asks the host.

    Args:
        space: order-preserving knobs only; others as in `sample_values`.
        u_N: (N,) in [0, 1).
    """
    value_NJ = value_NJ.to(torch.float64 if logits_NV.dtype == torch.float64 else torch.float32)
    if not any(isinstance(knob, TruncationKnob) for knob in space.knobs):
        return _sample_scaled(logits_NV, space, value_NJ, u_N), None
    if host_sees(logits_NV):
        host = HostCut(logits_NV, space, value_NJ, TOP)
        return torch.from_numpy(np.array(host.draw(u_N.tolist()), np.int64)), host
    cut = cut_rows(logits_NV, space, value_NJ)
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
        if not (open_rows := cut.open_rows):
            return token_N
        rows = torch.tensor(open_rows)
        part = told(cut, open_rows)
    else:
        assert cut.is_open_N is not None
        rows = cut.is_open_N.nonzero().squeeze(-1)
        part = cut.rows(rows)
    token_R = _sample_open(logits_NV[rows], space, value_NJ[rows].to(part.top_NM.dtype), part, u_N[rows], again(rows))
    return token_N.index_copy(0, rows, token_R)


def _sample_scaled(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, u_N: Tensor) -> Tensor:
    """Tokens where nothing truncates: the CDF is in index order."""
    temperature_N: Tensor | None = None
    for j, knob in enumerate(space.knobs):
        assert isinstance(knob, ScalingKnob)
        value_N = value_NJ[:, j]
        own_N = torch.where(value_N == knob.neutral, 1.0, knob.temperature(value_N))
        temperature_N = own_N if temperature_N is None else temperature_N * own_N
    if temperature_N is None:
        return draw(logits_NV, u_N)
    if host_sees(temperature_N) and 0.0 not in temperature_N.tolist():
        return draw(logits_NV, u_N, temperature_N)
    is_greedy_N = temperature_N == 0
    token_N = draw(logits_NV, u_N, temperature_N.masked_fill(is_greedy_N, 1.0))
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
    at_once = max(ROWS, WORK // logits_RV.shape[1]) if logits_RV.device.type == "cpu" else max(len(logits_RV), 1)
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
