"""Features of any number of responses, in files: held in memory where they fit there, streamed from the disk otherwise.

Both ways give the same batches. What is in memory always is where each response begins, and a batch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from functools import reduce
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentknobs.data.moments import Moments
from latentknobs.data.segment_batches import FEATURES, FeatureCache, Segments, stride, widen
from latentknobs.data.shard import Shard
from latentknobs.errors import ConfigError, RunError, UnreachableTokenError

CHUNK = 1 << 20  # bytes that are read at once where everything is


class FeatureStore:
    """The responses of some shards (at least one), one after the other. See `Features`.

    Args:
        ram_bytes: most that may be held in memory, on `device`; a larger store is read again for every batch. A view from
            `select` counts by itself, by the features that it keeps, and holds nothing until it is read.
        device: where batches are wanted.

    Attributes:
        unreachable: indices of the responses that no option can produce; they have no segments.
        skipped, total: segments that `min_spread` left out, and all that there were.

    Raises:
        RunError: a shard is missing, damaged, or does not fit the others.
        ConfigError: `min_spread` left nothing to learn from.
        UnreachableTokenError: no option can produce any of the responses.
    """

    def __init__(self, paths: Sequence[Path], *, ram_bytes: float, device: torch.device | str = "cpu") -> None:
        self.shards = [Shard(path) for path in paths]
        self.ram_bytes, self.device = ram_bytes, device
        self._first = [0, *accumulate(len(shard.start_R1) - 1 for shard in self.shards)]  # response
        self._row = [0, *accumulate(int(shard.start_R1[-1]) for shard in self.shards)]
        lost = ((first, shard.unreachable) for first, shard in zip(self._first, self.shards, strict=False))
        self.unreachable = tuple(first + r for first, rows in lost for r in rows)
        self.skipped, self.total = (sum(getattr(shard, name) for shard in self.shards) for name in ("skipped", "total"))
        self.columns = self.shards[0].columns
        self._kept = range(len(self.shards[0].moments.mean_F))
        self._cache: FeatureCache | None = None
        self._check()

    def __len__(self) -> int:
        """R, the number of responses."""
        return self._first[-1]

    @property
    def nbytes(self) -> int:
        """Size of all segments with the features that are kept."""
        return self._row[-1] * sum(self._pick(name, self._empty(name, 1)).nbytes for name in self.columns)

    @property
    def is_streamed(self) -> bool:
        """Whether batches are read from the disk."""
        return self.nbytes > self.ram_bytes

    def segments(self, response_U: Tensor) -> Segments:
        """The segments of some responses, by index; RunError if a shard disappeared or was cut short."""
        if not self.is_streamed:
            return self._loaded().segments(response_U)
        spans = [self._span(r) for r in response_U.tolist()]
        columns = {name: self._read(name, spans) for name in self.columns}
        feature_MF = widen(columns.pop(FEATURES).to(self.device))
        return Segments(feature_MF, columns, torch.tensor([length for *_, length in spans])).to(self.device)

    def sample(self, rows: int) -> Tensor:
        """(n, F) features of about `rows` segments, evenly spread over all."""
        if not self.is_streamed:
            return self._loaded().sample(rows)
        step = stride(self._row[-1], rows)
        ends = enumerate(pairwise(self._row))
        spans = [(s, row - start, 1) for s, (start, end) in ends for row in range(-(-start // step) * step, end, step)]
        return widen(self._read(FEATURES, spans).to(self.device))

    def moments(self) -> tuple[Tensor, Tensor]:
        """(F) mean and (F) standard deviation of the features over all segments, those left out included, in float64.

        Added up in the order of the shards: the same number whatever is in memory.
        """
        moments = reduce(Moments.__add__, [shard.moments for shard in self.shards])
        return self._pick(FEATURES, moments.mean_F), self._pick(FEATURES, moments.std_F)

    def select(self, kept: slice) -> "FeatureStore":
        """The same responses with some of their features only. Reads nothing yet."""
        view = copy(self)
        view._kept = self._kept[kept]
        view._cache = None if self._cache is None else self._cache.select(kept)
        return view

    def _empty(self, name: str, rows: int) -> Tensor:
        """Room for rows of a column, as they are on the disk."""
        column = self.shards[0].places[name]
        return torch.empty(rows, *column.shape[1:], dtype=column.dtype)

    def _pick(self, name: str, rows_N: Tensor) -> Tensor:
        """Rows of a column with the features that are kept."""
        kept = slice(self._kept.start, self._kept.stop, self._kept.step)
        return rows_N[..., kept] if name == FEATURES else rows_N

    def _span(self, response: int) -> tuple[int, int, int]:
        """The shard of a response, its first row there, and how many it has."""
        s = bisect_right(self._first, response) - 1
        first, end = self.shards[s].start_R1[response - self._first[s] :][:2].tolist()
        return s, first, end - first

    def _read(self, name: str, spans: Sequence[tuple[int, int, int]]) -> Tensor:
        """(M, ...) rows of a column: those of each span (see `_span`), one after the other. Files are read front to back."""
        start_U1 = [0, *accumulate(length for *_, length in spans)]
        out_M = self._empty(name, start_U1[-1])
        order = sorted(range(len(spans)), key=lambda u: spans[u])
        for s, places in groupby(order, key=lambda u: spans[u][0]):
            self.shards[s].read(name, ((spans[u][1], out_M[start_U1[u] : start_U1[u + 1]]) for u in places))
        return self._pick(name, out_M).contiguous()  # as in memory: kernels round by strides

    def _loaded(self) -> FeatureCache:
        """Everything in memory, read once."""
        if self._cache is None:
            ends = [shard.start_R1[1:] + row for shard, row in zip(self.shards, self._row, strict=False)]
            start_R1 = torch.cat([torch.zeros(1, dtype=torch.long), *ends]).to(self.device)
            columns = {name: self._load(name) for name in self.columns}
            self._cache = FeatureCache(columns.pop(FEATURES), columns, start_R1)
        return self._cache

    def _load(self, name: str) -> Tensor:
        """(N, ...) a whole column, a piece at a time, so that little is held twice."""
        nothing = self._read(name, [])
        out_N = torch.empty(self._row[-1], *nothing.shape[1:], dtype=nothing.dtype, device=self.device)
        size = max(1, CHUNK // self.shards[0].places[name].row_bytes)
        for s, (start, end) in enumerate(pairwise(self._row)):
            for row in range(start, end, size):
                stop = min(row + size, end)
                out_N[row:stop] = self._read(name, [(s, row - start, stop - row)])
        return out_N

    def _check(self) -> None:
        first = self.shards[0]
        for shard in self.shards:
            if _kinds(shard) != _kinds(first):
                raise RunError(
                    f"{str(shard.path)!r} and {str(first.path)!r} hold different features, columns or options, so they are of "
                    "different runs. Delete both and give the same command again: that writes them again."
                )
        if not self.total:
            raise UnreachableTokenError(
                f"Each of the {len(self)} responses holds a token that no option can produce. Add an option that truncates "
                "nothing (e.g. top_p 1), or set `floor`, e.g. floor=-20."
            )
        if not self._row[-1]:
            raise ConfigError(
                f"All {self.total} segments are about as likely under each option and were left out, so there is nothing to "
                "learn from. Lower min_spread, or give the knobs wider grids."
            )


def _kinds(shard: Shard) -> dict[str, Any]:
    """Number format and shape of a row of every column."""
    return {name: (shard.places[name].dtype, shard.places[name].shape[1:]) for name in shard.columns}
