"""The best tokens of a row, without sorting the row.

On a CPU the best M reach the M-th best of the row's block winners, as few other tokens do; numpy sorts those several times
faster than torch, which always carries indices along. On a GPU the same tournament runs on keys of value and index.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentknobs.likelihood.rows import wide
from latentknobs.tensors import host_sees

TOP = 256  # M; part of what a seed means: another number would order the CDF of uncut rows differently (see the sampler)
BLOCK = 32  # tokens per block of the tournament on a GPU
WIDTHS = (128, 64, 32)  # tokens per block on a CPU, the widest that leaves enough blocks


@dataclass
class Best:
    """The best M tokens of N rows: descending, equal ones by index, so that nothing but the row decides on their order.

    Attributes:
        value_NM: numpy; their logits, NaN in rows that hold any NaN.
        found: for each row the logits of the candidate tokens, and their ids, equal ones ascending. Ids are
            looked up where a caller needs them.
    """

    value_NM: Any
    found: list[tuple[Any, Any]]

    @classmethod
    def of(cls, value_NM: Any, token_NM: Any) -> "Best":
        """From tokens that are in order."""
        return cls(value_NM, list(zip(value_NM, token_NM, strict=True)))

    def token(self, n: int, place: int) -> int:
        """The id at one place of row n."""
        value_M, (value_C, token_C) = self.value_NM[n], self.found[n]
        value, before = value_M[place], 0
        while before < place and value_M[place - before - 1] == value:
            before += 1
        return int(token_C[(value_C == value).nonzero()[0][before]])

    def tokens(self, rows: Sequence[int]) -> Tensor:
        """(R, M) the ids of some rows."""
        M = self.value_NM.shape[1]
        ids = [token_C[(-value_C).argsort(kind="stable")[:M]] for value_C, token_C in (self.found[n] for n in rows)]
        return torch.from_numpy(np.stack(ids))


def best_values(logits_NV: Tensor, M: int) -> Tensor:
    """(N, min(M, V)) the largest logits of each row in descending order, float32 or wider."""
    if logits_NV.shape[1] <= 4 * M:
        return sort_descending(wide(logits_NV))[:, :M]
    logits_NV = wide(logits_NV)
    return torch.from_numpy(best_tokens(logits_NV.detach(), M).value_NM) if host_sees(logits_NV) else logits_NV.topk(M, -1).values


def sort_descending(value_NV: Tensor) -> Tensor:
    """(N, V) every row in descending order; values only, float32 or float64."""
    if not host_sees(value_NV):
        return value_NV.sort(-1, descending=True).values
    ascending_NV = (-value_NV.detach()).contiguous().numpy()
    ascending_NV.sort(-1)
    return torch.from_numpy(ascending_NV).neg_()


def best_tokens(logits_NV: Tensor, M: int, greedy: Collection[int] = ()) -> Best:
    """The M best tokens (or all, if there are fewer) of rows on the host.

    A row at a time, while it is in the cache. Blocks are combs (tokens that are equal modulo their number), so that the winners
    are the largest of whole stretches of the row.

    Args:
        logits_NV: float32 or float64, without gradient.
        greedy: rows of which only the first argmax is wanted; their other places repeat it.
    """
    N, V = logits_NV.shape
    width = next((width for width in WIDTHS if 3 * M * width < 2 * V), 1)
    blocks, M = V // width, min(M, V)
    rows_NV = logits_NV.numpy()
    value_NM, found, is_found_V = np.empty((N, M), rows_NV.dtype), [], np.empty(V, bool)
    for n, (row_V, value_M) in enumerate(zip(rows_NV, value_NM, strict=True)):
        if n in greedy:
            token_C = row_V.argmax(keepdims=True)
            value_M[:] = value_C = row_V[token_C]
            found.append((value_C, token_C))
            continue
        winner_U = np.maximum.reduce(row_V[: blocks * width].reshape(width, blocks))
        winner_U.sort()  # NaN last
        token_C = np.greater_equal(row_V, winner_U[blocks - M], out=is_found_V).nonzero()[0]
        value_C = row_V[token_C]
        ascending_C = value_C.copy()
        ascending_C.sort()
        is_nan = winner_U[-1] != winner_U[-1] or (blocks * width < V and np.isnan(row_V[blocks * width :]).any())
        value_M[:] = np.nan if is_nan else ascending_C[: -M - 1 : -1]
        found.append((value_C, token_C))
    return Best(value_NM, found)


def top_by_key(logits_NV: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """`best_tokens` on a GPU: (N, M) values and ids. They lie inside the M blocks that are best by key."""
    N, V = logits_NV.shape
    if logits_NV.dtype == torch.float64:
        value_NV, token_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
        return value_NV[:, :M], token_NV[:, :M]
    token_NC, value_NC = torch.arange(V, device=logits_NV.device).expand(N, V), logits_NV
    if (blocks := V // BLOCK) > M and V % BLOCK == 0:
        block_NM = _largest_by_key(logits_NV.view(N, blocks, BLOCK).amax(-1), token_NC[:, :blocks], M)
        token_NC = (block_NM.unsqueeze(-1) * BLOCK + token_NC[0, :BLOCK]).flatten(1)
        value_NC = logits_NV.gather(-1, token_NC)
    token_NM = _largest_by_key(value_NC, token_NC, M)
    return logits_NV.gather(-1, token_NM), token_NM


def _largest_by_key(value_NC: Tensor, index_NC: Tensor, M: int) -> Tensor:
    """(N, M) the indices of the largest values, equal ones by index.

    Keys are int64: float32 values in their order (the sign bit folded away), then the complement of the index.
    """
    bits_NC = (value_NC + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: the two zeros are equal
    rank_NC = bits_NC ^ ((bits_NC >> 31) & 0x7FFFFFFF)
    key_NM = ((rank_NC.long() << 32) | (0xFFFFFFFF - index_NC)).topk(min(M, value_NC.shape[1]), -1).values
    return 0xFFFFFFFF - (key_NM & 0xFFFFFFFF)
