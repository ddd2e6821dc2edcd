"""What a head is trained on: features and other columns of responses, segment by segment, read a batch at a time.

Rows are segments, not tokens: a segment has one option, hence its features are those at its first token and its table is the
sum of its tokens' tables. Training then never sees the vocabulary, the LM, or the level. `featurise` makes the rows; `store`
keeps more of them than fit in memory; a learner declares the columns beside the features (`columns.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from latentknobs.data.moments import Moments

FEATURES = "feature_NF"  # the column that every store has


@dataclass(frozen=True)
class Segments:
    """The M segments of U responses, response by response, without padding.

    Attributes:
        feature_MF: features at the first token of each segment, float32 or wider.
        columns: (M, ...) the columns that the learner declared, by name.
        length_U: segments of each response; a response may have none.
    """

    feature_MF: Tensor
    columns: Mapping[str, Tensor]
    length_U: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """(M, ...) a column by its name."""
        return self.columns[name]

    @property
    def mask_US(self) -> Tensor:
        """(U, S) which places of a padded batch are segments, M in all; S is the longest response, at least 1."""
        S = max(1, int(self.length_U.max()))
        return torch.arange(S, device=self.length_U.device) < self.length_U.unsqueeze(-1)

    def sum(self, value_M: Tensor) -> Tensor:
        """(U,) the sum of a value over the segments of each response; 0 where there are none."""
        mask_US = self.mask_US
        return value_M.new_zeros(mask_US.shape).masked_scatter(mask_US, value_M).sum(-1)

    def to(self, device: torch.device | str) -> "Segments":
        """The same on another device."""
        columns = {name: value.to(device) for name, value in self.columns.items()}
        return Segments(self.feature_MF.to(device), columns, self.length_U.to(device))


class Features(Protocol):
    """What a head is trained on: R responses, read a batch at a time. In memory (`FeatureCache`) or on disk."""

    def __len__(self) -> int:
        """R, the number of responses."""

    def segments(self, response_U: Tensor) -> Segments:
        """The segments of some responses, by index."""

    def sample(self, rows: int) -> Tensor:
        """(n, F) features of about `rows` segments, evenly spread over all."""

    def moments(self) -> tuple[Tensor, Tensor]:
        """(F) mean and (F) standard deviation of the features over all segments, in float64."""

    def select(self, kept: slice) -> "Features":
        """The same responses with some of their features only."""


@dataclass(frozen=True)
class FeatureCache:
    """Segments of R responses, one after the other. N is the number of segments of all responses together.

    Attributes:
        feature_NF: features at the first token of each segment.
        columns: (N, ...) the columns that the learner declared, by name.
        start_R1: (R + 1) where each response begins; the last entry is N.
    """

    feature_NF: Tensor
    columns: Mapping[str, Tensor]
    start_R1: Tensor

    def __len__(self) -> int:
        """R, the number of responses."""
        return len(self.start_R1) - 1

    def segments(self, response_U: Tensor) -> Segments:
        """The segments of some responses, by index."""
        response_U = response_U.to(self.start_R1.device)
        first_U = self.start_R1[response_U]
        length_U = self.start_R1[response_U + 1] - first_U
        before_U = length_U.cumsum(0) - length_U
        row_M = (first_U - before_U).repeat_interleave(length_U)
        row_M = row_M + torch.arange(len(row_M), device=row_M.device)
        columns = {name: column.index_select(0, row_M) for name, column in self.columns.items()}
        return Segments(widen(self.feature_NF.index_select(0, row_M)), columns, length_U)

    def sample(self, rows: int) -> Tensor:
        """(n, F) features of about `rows` segments, evenly spread over all."""
        return widen(self.feature_NF[:: stride(len(self.feature_NF), rows)])

    def moments(self) -> tuple[Tensor, Tensor]:
        """(F) mean and (F) standard deviation of the features over all segments, in float64."""
        moments = Moments.of(self.feature_NF)
        return moments.mean_F, moments.std_F

    def select(self, kept: slice) -> "FeatureCache":
        """The same responses with some of their features only."""
        return replace(self, feature_NF=self.feature_NF[:, kept])

    def where(self, keep_N: Tensor) -> "FeatureCache":
        """The same responses with some of their segments only."""
        before_N1 = torch.cat([keep_N.new_zeros(1, dtype=torch.long), keep_N.cumsum(0)])
        columns = {name: column[keep_N] for name, column in self.columns.items()}
        return FeatureCache(self.feature_NF[keep_N], columns, before_N1[self.start_R1])

    @classmethod
    def join(cls, caches: Sequence["FeatureCache"]) -> "FeatureCache":
        """The responses of several, one after the other."""
        length_R = torch.cat([cache.start_R1.diff() for cache in caches])
        columns = {name: torch.cat([cache.columns[name] for cache in caches]) for name in caches[0].columns}
        feature_NF = torch.cat([cache.feature_NF for cache in caches])
        return cls(feature_NF, columns, torch.cat([length_R.new_zeros(1), length_R.cumsum(0)]))


def widen(feature: Tensor) -> Tensor:
    """Features as a head reads them: 16 bits become float32, what is wider stays."""
    return feature.float() if feature.dtype.itemsize < 4 else feature


def stride(total: int, rows: int) -> int:
    """The step that takes about `rows` of `total`."""
    return max(1, total // rows)
