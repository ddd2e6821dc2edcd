"""One file of features: the segments of some responses, and the sums that would otherwise need all of them again.

A shard is a safetensors file. Rows are read at their positions straight into the tensor that is wanted, so memory holds nothing
else of the file, and a file that is cut short meanwhile is an error like any other.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentknobs.data.disk import save_tensors
from latentknobs.data.featurise import Featurised
from latentknobs.data.moments import Moments
from latentknobs.data.segment_batches import FEATURES
from latentknobs.errors import RunError

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
SMALL = ("start_R1", "mean_F", "square_F", "unreachable_U", "count_2")  # count_2: segments left out, and segments


def write_shard(path: Path, features: Featurised) -> None:
    """Writes some responses as one file, complete or not at all; an OSError (e.g. ENOSPC, the disk is full) leaves nothing."""
    tensors = {FEATURES: features.cache.feature_NF, **features.cache.columns, "start_R1": features.cache.start_R1}
    tensors |= {"mean_F": features.moments.mean_F, "square_F": features.moments.square_F}
    tensors |= {"unreachable_U": torch.tensor(features.unreachable, dtype=torch.long)}
    tensors |= {"count_2": torch.tensor([features.skipped, features.total])}
    save_tensors(tensors, path)


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file: its number format and shape, and the byte at which it begins."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


class Shard:
    """What `write_shard` wrote: its rows on request, everything small in memory; RunError if it is missing, damaged, or another.

    Attributes:
        places: where its tensors lie, by name.
        columns: names of those that have a row for every segment, the features first.
        start_R1: (R + 1) where each response begins; the last entry is N, the number of rows.
        moments, unreachable, skipped, total: see `Featurised`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "pt"):  # refuses a damaged header, and a file of another length than that says
                self.places = _places(path)
                self._stamp = _stamp(path.stat())
            self.start_R1, mean_F, square_F, unreachable_U, count_2 = (self._whole(name) for name in SMALL)
            self.skipped, self.total = count_2.tolist()
            self.columns = (FEATURES, *sorted(self.places.keys() - {FEATURES, *SMALL}))
            _check({name: self.places[name] for name in self.columns}, self.start_R1, mean_F)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
        self.unreachable = tuple(unreachable_U.tolist())
        self.moments = Moments(self.total, mean_F, square_F)

    def read(self, name: str, parts: Iterable[tuple[int, Tensor]]) -> None:
        """Fills tensors (contiguous, on the CPU, of the column's format) with rows of a column, each from a first row on.

        RunError if the file is missing, or was cut short or replaced since.
        """
        column = self.places[name]
        try:
            with self.path.open("rb") as file:
                if _stamp(os.fstat(file.fileno())) != self._stamp:
                    raise OSError("it was cut short or replaced while it was in use")
                for first, out in parts:
                    file.seek(column.offset + first * column.row_bytes)
                    if file.readinto(out.flatten().view(torch.uint8).numpy().data) < out.nbytes:
                        raise OSError("it ends early")
        except OSError as error:
            raise _damaged(self.path, error) from error

    def _whole(self, name: str) -> Tensor:
        out = torch.empty(self.places[name].shape, dtype=self.places[name].dtype)
        self.read(name, [(0, out)])
        return out


def _stamp(found: os.stat_result) -> tuple[int, int]:
    """Size of a file, and when it was last written."""
    return found.st_size, found.st_mtime_ns


def _places(path: Path) -> dict[str, Place]:
    """The header of a safetensors file: its length in 8 bytes, then JSON; offsets count from its end."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    known = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if missing := [name for name in (FEATURES, *SMALL) if name not in known]:
        raise ValueError(f"it has no {missing[0]}")
    if strange := [entry["dtype"] for entry in known.values() if entry["dtype"] not in DTYPES]:
        raise ValueError(f"it holds {strange[0]} numbers")
    return {
        name: Place(DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in known.items()
    }


def _check(columns: dict[str, Place], start_R1: Tensor, mean_F: Tensor) -> None:
    ends = start_R1.dim() == 1 and len(start_R1) > 1 and int(start_R1[0]) == 0 and bool((start_R1.diff() >= 0).all())
    N = int(start_R1[-1]) if ends else -1
    if columns[FEATURES].shape != (N, *mean_F.shape) or any(place.shape[:1] != (N,) for place in columns.values()):
        raise ValueError("its parts do not fit each other")


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{str(path)!r} is missing or damaged ({error}). Delete it and give the same command again: that writes it again."
    )
