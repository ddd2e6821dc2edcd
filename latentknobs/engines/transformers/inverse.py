"""Tokens by inverse CDF over whole rows, in index order."""

import numpy as np
import torch
from torch import Tensor

from latentknobs.likelihood.rows import checked, wide
from latentknobs.tensors import host_sees

WORK = 1 << 17  # elements of rows in work at once on a CPU
BLOCK = 256  # tokens per step of the CDF on a CPU


def draw(logits_NV: Tensor, u_N: Tensor, temperature_N: Tensor | None = None) -> Tensor:
    """(N,) tokens by inverse CDF, never one of weight 0; LogitsError if a row is not a distribution (on a GPU unchecked).

    Args:
        u_N: (N,) float64 in [0, 1).
        temperature_N: (N,) above 0; None: 1.
    """
    N, V = logits_NV.shape
    u_N = u_N.clamp(max=1 - 2.0**-53)
    if not host_sees(logits_NV):
        cdf_NV = _probs(logits_NV, temperature_N).cumsum(-1, dtype=torch.float64)
        place_N1 = torch.searchsorted(cdf_NV, (u_N * cdf_NV[:, -1]).unsqueeze(-1), right=True)
        return place_N1.squeeze(-1).clamp_(max=V - 1)  # rows of NaN would end beyond it
    parts, rows = [torch.zeros(0, dtype=torch.long)], max(1, WORK // V)
    for first in range(0, N, rows):
        part = slice(first, first + rows)
        prob_RV = _probs(logits_NV[part], None if temperature_N is None else temperature_N[part], first)
        parts.append(_draw_on_host(prob_RV, u_N[part]))
    return torch.cat(parts)


def _draw_on_host(prob_NV: Tensor, u_N: Tensor) -> Tensor:
    """A row at a time in numpy, whose operations start several times faster than torch's: the block, then the token in it."""
    first_U = np.arange(0, prob_NV.shape[1], BLOCK)
    tokens = []
    for prob_V, u in zip(prob_NV.numpy(), u_N.tolist(), strict=True):
        mass_U = np.add.reduceat(prob_V, first_U).astype(np.float64).cumsum()
        target = u * mass_U[-1]
        block = min(int(mass_U.searchsorted(target, "right")), len(mass_U) - 1)
        inside_B = prob_V[block * BLOCK : (block + 1) * BLOCK].astype(np.float64).cumsum()
        place = inside_B.searchsorted(target - (mass_U[block - 1] if block else 0.0), "right")
        last = int(inside_B.searchsorted(inside_B[-1]))  # the last weight, as its sum may round to less than the CDF said
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
