"""The largest values of a row, without sorting the row.

A tournament: the M largest tokens of a row lie inside the M blocks whose best tokens are largest. One read of the logits
finds the block winners; what remains is a few thousand candidates. On a CPU numpy sorts values several times faster than
torch, which always carries indices along.
"""

import importlib
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # tokens per block of the tournament: halves and doubles are slower at V = 32,000 and at V = 128,256
ROWS = 32  # rows in work at once, so that the candidates stay in the cache


def sort_descending(value_NV: Tensor) -> Tensor:
    """(N, V) every row in descending order; values only."""
    if value_NV.device.type != "cpu" or value_NV.dtype not in (torch.float32, torch.float64):
        return value_NV.sort(-1, descending=True).values
    ascending_NV = (-value_NV.detach()).contiguous().numpy()
    ascending_NV.sort(-1)
    return torch.from_numpy(ascending_NV).neg_()


def top_values(logits_NV: Tensor, M: int) -> Tensor:
    """(N, min(M, V)) the largest logits of each row in descending order, float32 or wider."""
    N, V = logits_NV.shape
    if M >= V:
        return sort_descending(_wide(logits_NV))
    out_NM = torch.empty(N, M, dtype=_wide(logits_NV[:0]).dtype, device=logits_NV.device)
    for first in range(0, N, ROWS):
        rows = slice(first, first + ROWS)
        out_NM[rows] = sort_descending(_largest(_wide(candidates(logits_NV[rows], M)[0]), M))
    return out_NM


def first_argmax(logits_NV: Tensor) -> Tensor:
    """(N,) the first index of each row's largest logit: first the best block, then the place in it."""
    N, V = logits_NV.shape
    blocks = V // BLOCK
    if blocks < 4 or V % BLOCK or not logits_NV.is_contiguous():
        return logits_NV.argmax(-1)
    logits_NUB = logits_NV.view(N, blocks, BLOCK)
    block_N = logits_NUB.amax(-1).argmax(-1)
    rows_N = torch.arange(N, device=logits_NV.device)
    return block_N * BLOCK + logits_NUB[rows_N, block_N].argmax(-1)


def candidates(logits_NV: Tensor, M: int) -> tuple[Tensor, Tensor | None]:
    """The values of a few blocks that surely hold the M largest tokens of each row, and where the blocks begin.

    Returns:
        (N, C) values; (N, C // BLOCK) first token of each block, or None when C = V and nothing was left out.
    """
    N, V = logits_NV.shape
    blocks = -(-V // BLOCK)
    if blocks < 3 * M:
        return logits_NV, None
    if V % BLOCK or not logits_NV.is_contiguous():
        fill = (0, blocks * BLOCK - V)
        logits_NV = torch.nn.functional.pad(logits_NV, fill, value=-torch.inf)
    logits_NUB = logits_NV.view(N, blocks, BLOCK)
    block_NM = logits_NUB.amax(-1).topk(M, -1, sorted=False).indices
    flat_NM = block_NM + torch.arange(0, N * blocks, blocks, device=logits_NV.device).unsqueeze(-1)
    value_NMB = logits_NUB.view(-1, BLOCK).index_select(0, flat_NM.view(-1)).view(N, M, BLOCK)
    return value_NMB.flatten(1), block_NM * BLOCK


def top_tokens(logits_NV: Tensor, M: int, kernels: bool = False) -> tuple[Tensor, Tensor]:
    """The M largest logits of each row, in an order that nothing but the row decides: descending, equal ones by index.

    Which of several equal tokens make the top, and in which order, must not depend on device or batch: samplers count on it.

    Returns:
        (N, min(M, V)) values, float32 or wider, and token ids.
    """
    if logits_NV.dtype == torch.float64:
        value_NV, token_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
        return value_NV[:, :M], token_NV[:, :M]
    if kernels and (triton := kernels_for(logits_NV)) is not None and triton.fits(logits_NV, M):
        found: tuple[Tensor, Tensor] = triton.top_tokens(logits_NV, M)
        return found
    logits_NV = logits_NV.float()
    token_NM = _top_by_bound(logits_NV, M) if logits_NV.device.type == "cpu" else _top_by_key(logits_NV, M)
    return logits_NV.gather(-1, token_NM), token_NM


def _top_by_bound(logits_NV: Tensor, M: int) -> Tensor:
    """(N, M) ids of the largest float32 logits, equal ones by index: they reach the M-th best block winner, as few others do.

    numpy, a row at a time: those few hundred tokens are found and sorted several times faster than torch takes the top of a row.
    """
    N, V = logits_NV.shape
    value_NV = logits_NV.detach().numpy()
    width = next((width for width in (2 * BLOCK, BLOCK) if 3 * M * width < 2 * V), 1)
    blocks, M = V // width, min(M, V)
    winner_NU = value_NV if width == 1 else logits_NV[:, : blocks * width].unflatten(-1, (blocks, width)).amax(-1).numpy()
    bound_N = np.partition(winner_NU, blocks - M, -1)[:, blocks - M]
    token_NM = np.empty((N, M), dtype=np.int64)
    for value_V, bound, out_M in zip(value_NV, bound_N, token_NM, strict=True):
        token = np.flatnonzero(~(value_V < bound))  # so that NaN is kept
        out_M[:] = token[np.argsort(-value_V[token], kind="stable")[:M]]
    return torch.from_numpy(token_NM)


def _top_by_key(logits_NV: Tensor, M: int) -> Tensor:
    """(N, M) ids of the largest float32 logits, equal ones by index. They lie inside the M blocks that are best by key."""
    N, V = logits_NV.shape
    token_NV = torch.arange(V, device=logits_NV.device).expand(N, V)
    if (blocks := V // BLOCK) > M and V % BLOCK == 0:
        block_NM = _largest_by_key(logits_NV.view(N, blocks, BLOCK).amax(-1), token_NV[:, :blocks], M)
        token_NV = (block_NM.unsqueeze(-1) * BLOCK + token_NV[0, :BLOCK]).flatten(1)
        logits_NV = logits_NV.gather(-1, token_NV)
    return _largest_by_key(logits_NV, token_NV, M)


def _largest_by_key(value_NC: Tensor, index_NC: Tensor, M: int) -> Tensor:
    """(N, M) the indices of the largest values, equal ones by index."""
    key_NM = _keys(value_NC, index_NC).topk(min(M, value_NC.shape[1]), -1).values
    return 0xFFFFFFFF - (key_NM & 0xFFFFFFFF)


def _keys(value: Tensor, index: Tensor) -> Tensor:
    """int64 keys that order float32 values first and, among equals, lower indices first (the sign bit folded away)."""
    bits = (value + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: the two zeros are equal
    rank = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (rank.long() << 32) | (0xFFFFFFFF - index)


def kernels_for(logits_NV: Tensor) -> Any:
    """The module of Triton kernels where it can read these rows: on an NVIDIA GPU, no wider than float32; else None."""
    is_fit = logits_NV.device.type == "cuda" and torch.version.hip is None and logits_NV.dtype != torch.float64
    return _triton() if is_fit and logits_NV.stride(-1) == 1 and len(logits_NV) else None


@cache
def _triton() -> Any:
    try:
        return importlib.import_module("latentknobs.likelihood.kernels")
    except ImportError:  # Triton comes with torch for NVIDIA GPUs; torch itself does the same in more steps
        return None


def _largest(value_NC: Tensor, M: int) -> Tensor:
    """(N, M) the largest values, in any order."""
    if value_NC.device.type != "cpu":
        return value_NC.topk(M, -1, sorted=False).values
    cut = value_NC.shape[1] - M
    return torch.from_numpy(np.partition(value_NC.detach().numpy(), cut, -1)[:, cut:])


def _wide(value_NV: Tensor) -> Tensor:
    return value_NV if value_NV.dtype == torch.float64 else value_NV.float()
