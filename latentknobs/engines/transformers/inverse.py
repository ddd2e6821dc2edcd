"""Tokens by inverse CDF over whole rows, in index order: first the block of tokens, then the token in it."""

import numpy as np
import torch
from torch import Tensor

from latentknobs.likelihood.rows import checked, wide
from latentknobs.tensors import host_sees

WORK = 1 << 17  # elements of rows in work at once on a CPU
BLOCK = 256  # tokens per step of the CDF
SHORT = 4 * BLOCK  # tokens of a row whose CDF is written down as a whole


def draw(logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None = None) -> Tensor:
    """(N,) tokens by inverse CDF, never one of weight 0; LogitsError if a row is not a distribution (on a GPU unchecked).

    Args:
        u_N: (N,) float64 in [0, 1).
        temperature_N: (N,) above 0; None: 1.
    """
    N, V = logits_NV.shape
    u_N = u_N.clamp(max=1 - 2.0**-53)
    if V <= SHORT:
        return _draw_short(logits_NV, u_N, temperature_N)
    is_host = host_sees(logits_NV)
    rows = max(1, WORK // V) if is_host else max(1, N)
    parts = []
    for first in range(0, N, rows):
        part = slice(first, first + rows)
        prob_RV = _probs(logits_NV[part], None if temperature_N is None else temperature_N[part], first)
        parts.append(_draw_on_host(prob_RV, u_N[part]) if is_host else _draw(prob_RV, u_N[part]))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=logits_NV.device)


def _draw_short(logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None) -> Tensor:
    cdf_NV = _probs(logits_NV, temperature_N).cumsum(-1, dtype=torch.float64)
    place_N1 = torch.searchsorted(cdf_NV, u_N.unsqueeze(-1) * cdf_NV[:, -1:], right=True)
    return place_N1.squeeze(-1).clamp_(max=logits_NV.shape[1] - 1)


def _draw(prob_NV: Tensor, u_N: Tensor) -> Tensor:
    N, V = prob_NV.shape
    if V % BLOCK:
        prob_NV = torch.nn.functional.pad(prob_NV, (0, BLOCK - V % BLOCK))
    prob_NUB = prob_NV.view(N, -1, BLOCK)
    block_N, target_N1 = _block(prob_NUB.sum(-1).double(), u_N)
    inside_NB = prob_NUB[torch.arange(N, device=prob_NV.device), block_N]
    return block_N * BLOCK + _place(inside_NB, target_N1)


def _draw_on_host(prob_NV: Tensor, u_N: Tensor) -> Tensor:
    """`_draw`, a row at a time in numpy, whose operations start several times faster than torch's."""
    first_U = np.arange(0, prob_NV.shape[1], BLOCK)
    tokens = []
    for prob_V, u in zip(prob_NV.numpy(), u_N.tolist(), strict=True):
        mass_U = np.add.reduceat(prob_V, first_U).astype(np.float64).cumsum()
        target = u * mass_U[-1]
        block = min(int(mass_U.searchsorted(target, "right")), len(mass_U) - 1)
        inside_B = prob_V[block * BLOCK : (block + 1) * BLOCK].astype(np.float64).cumsum()
        place = inside_B.searchsorted(target - (mass_U[block - 1] if block else 0.0), "right")
        last = min(int(inside_B.searchsorted(inside_B[-1])), len(inside_B) - 1)  # as in `_place`
        tokens.append(block * BLOCK + min(int(place), last))
    return torch.from_numpy(np.array(tokens, np.int64))


def _probs(logits_NV: Tensor, temperature_N: Tensor | None, first_row: int = 0) -> Tensor:
    """(N, V); checked after a softmax that failed, since most do not. On a GPU, where to look is to wait, before it."""
    safe_NV = wide(logits_NV) if host_sees(logits_NV) else checked(logits_NV)
    prob_NV = (safe_NV if temperature_N is None else safe_NV / temperature_N.unsqueeze(-1)).softmax(-1)
    if host_sees(prob_NV) and bool(prob_NV[:, 0].isnan().any()):
        safe_NV = checked(logits_NV, first_row=first_row)
        return (safe_NV if temperature_N is None else safe_NV / temperature_N.unsqueeze(-1)).softmax(-1)
    return prob_NV


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
