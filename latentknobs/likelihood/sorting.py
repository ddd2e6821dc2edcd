"""The largest values of a row, without sorting the row.

A tournament: the M largest tokens of a row lie inside the M blocks whose best tokens are largest. One read of the logits
finds the block winners; what remains is a few thousand candidates. On a CPU numpy sorts values several times faster than
torch, which always carries indices along.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 32  # tokens per block of the tournament: halves and doubles are slower at V = 32,000 and at V = 128,256
ROWS = 32  # rows in work at once, so that the candidates stay in the cache
WIDTHS = (4 * BLOCK, 2 * BLOCK, BLOCK)  # of the blocks of `best_by_bound`


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
    if 4 * M >= V:  # one sort is faster than a partition and a sort
        return sort_descending(_wide(logits_NV))[:, :M]
    out_NM = torch.empty(N, M, dtype=_wide(logits_NV[:0]).dtype, device=logits_NV.device)
    for first in range(0, N, ROWS):
        rows = slice(first, first + ROWS)
        out_NM[rows] = sort_descending(_largest(_wide(candidates(logits_NV[rows], M)[0]), M))
    return out_NM


def first_argmax(logits_NV: Tensor) -> Tensor:
    """(N,) the first index of each row's largest logit."""
    if logits_NV.device.type == "cpu" and logits_NV.dtype in (torch.float32, torch.float64) and logits_NV.is_contiguous():
        return torch.from_numpy(logits_NV.detach().numpy().argmax(-1))  # several times faster than torch's
    N, V = logits_NV.shape
    blocks = V // BLOCK
    if blocks < 4 or V % BLOCK or not logits_NV.is_contiguous():
        return logits_NV.argmax(-1)
    logits_NUB = logits_NV.view(N, blocks, BLOCK)  # first the best block, then the place in it
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


def top_tokens(logits_NV: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """The M largest logits of each row, in an order that nothing but the row decides: descending, equal ones by index.

    Which of several equal tokens make the top, and in which order, must not depend on device or batch: samplers count on it.

    Returns:
        (N, min(M, V)) values, float32 or wider, and token ids.
    """
    if logits_NV.device.type == "cpu":
        best = best_by_bound(logits_NV, M)
        return torch.from_numpy(best.value_NM), torch.from_numpy(best.tokens(range(len(logits_NV))))
    if logits_NV.dtype == torch.float64:
        value_NV, token_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
        return value_NV[:, :M], token_NV[:, :M]
    logits_NV = logits_NV.float()
    token_NM = _top_by_key(logits_NV, M)
    return logits_NV.gather(-1, token_NM), token_NM


@dataclass(frozen=True)
class Best:
    """The best tokens of rows on the host, as numpy arrays. Values are sorted; ids are looked up where somebody asks.

    Attributes:
        value_NM: the M largest logits, descending.
        found: for each row the logits of the tokens among which they were found, and their ids, ascending.
    """

    value_NM: Any
    found: list[tuple[Any, Any]]

    def token(self, n: int, place: int) -> int:
        """The id at one place of row n."""
        value_M, (value_C, token_C) = self.value_NM[n], self.found[n]
        value = value_M[place]
        if value != value:  # NaN equals nothing
            return int(self.tokens([n])[0, place])
        before = 0  # equal ones go by index
        while before < place and value_M[place - before - 1] == value:
            before += 1
        return int(token_C[(value_C == value).nonzero()[0][before]])

    def tokens(self, rows: Iterable[int]) -> Any:
        """(R, M) the ids of some rows."""
        M = self.value_NM.shape[1]
        ids = [token_C[(-value_C).argsort(kind="stable")[:M]] for value_C, token_C in (self.found[n] for n in rows)]
        return np.stack(ids) if ids else np.empty((0, M), np.int64)


def best_by_bound(logits_NV: Tensor, M: int, greedy: Collection[int] = ()) -> Best:
    """`top_tokens` on the host: the best tokens of a row reach the M-th best of its block winners, as few others do.

    A row at a time, while it is in the cache. Blocks are combs (tokens that are equal modulo their number), so that the
    winners are the largest of whole stretches of the row. All of it is two sorts of a few hundred numbers.

    Args:
        greedy: rows of which only the first argmax is wanted; their other places repeat it.
    """
    N, V = logits_NV.shape
    rows_NV = _wide(logits_NV).detach().numpy()
    width = next((width for width in WIDTHS if 3 * M * width < 2 * V), 1)
    blocks, M = V // width, min(M, V)
    value_NM, found = np.empty((N, M), rows_NV.dtype), []
    for n, (row_V, value_M) in enumerate(zip(rows_NV, value_NM, strict=True)):
        if n in greedy:
            token_C = row_V.argmax(keepdims=True)
            value_M[:] = value_C = row_V[token_C]
            found.append((value_C, token_C))
            continue
        winner_U = np.maximum.reduce(row_V[: blocks * width].reshape(width, blocks))
        winner_U.sort()
        token_C = (row_V >= winner_U[blocks - M]).nonzero()[0]
        if len(token_C) < M:  # NaN was among the winners
            token_C = np.arange(V)
        value_C = row_V[token_C]
        value_M[:] = -np.sort(-value_C)[:M]  # from the largest down, NaN last
        found.append((value_C, token_C))
    return Best(value_NM, found)


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


def _largest(value_NC: Tensor, M: int) -> Tensor:
    """(N, M) the largest values, in any order."""
    if value_NC.device.type != "cpu":
        return value_NC.topk(M, -1, sorted=False).values
    cut = value_NC.shape[1] - M
    return torch.from_numpy(np.partition(value_NC.detach().numpy(), cut, -1)[:, cut:])


def _wide(value_NV: Tensor) -> Tensor:
    return value_NV if value_NV.dtype == torch.float64 else value_NV.float()
