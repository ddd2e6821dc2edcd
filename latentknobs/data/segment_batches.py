"""What a head is trained on: features and likelihood tables of responses, read a batch at a time.

Rows are segments, not tokens: a segment has one option, hence its features are those at its first token and its table is the
sum of its tokens' tables. Training then never sees the vocabulary, the LM, or the level. `featurise` makes the rows; `store`
keeps more of them than fit in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from latentknobs.data.moments import Moments
from latentknobs.learners.lpo import Responses
from latentknobs.learners.lpo.segment_losses import Segments

PADDED = ("logps_NK", "option_N", "base_N")
COLUMNS = ("feature_NF", *PADDED)  # what every segment has


@dataclass(frozen=True)
class Batch:
    """B responses, padded to the S segments of the longest. S is at least 1: a response without segments is all mask.

    Attributes:
        feature_NF: features at the first token of each of the N real segments, response by response, float32 or wider. Not
            padded: at F = 4096 a copy costs as much as a narrow head does.
        responses: the B rows as the objectives want them, each segment standing as one token of its own.
    """

    feature_NF: Tensor
    responses: Responses

    @property
    def segments(self) -> Segments:
        """The same, without padding."""
        told = self.responses
        mask_BS = told.mask_BT
        assert told.option_BT is not None and told.base_logps_BT is not None
        return Segments(told.option_logps_BTK[mask_BS], told.option_BT[mask_BS], told.base_logps_BT[mask_BS], mask_BS)

    @property
    def feature_BSF(self) -> Tensor:
        """(B, S, F) the features at their places, 0 where the mask is False."""
        mask_BS = self.responses.mask_BT
        out_BSF = self.feature_NF.new_zeros(*mask_BS.shape, self.feature_NF.shape[1])
        out_BSF[mask_BS] = self.feature_NF
        return out_BSF


class Features(Protocol):
    """What a head is trained on: R responses, read a batch at a time. In memory (`FeatureCache`) or on disk."""

    def __len__(self) -> int:
        """R, the number of responses."""

    def batch(self, response_B: Tensor) -> Batch:
        """Some responses, by index."""

    def sample(self, rows: int) -> Tensor:
        """(n, F) features of about `rows` segments, evenly spread over all."""

    def moments(self) -> tuple[Tensor, Tensor]:
        """(F) mean and (F) standard deviation of the features over all segments, in float64."""

    def columns(self, kept: slice) -> "Features":
        """The same responses with some of their features only."""


@dataclass(frozen=True)
class FeatureCache:
    """Segments of R responses, one after the other. N is the number of segments of all responses together.

    Attributes:
        feature_NF: features at the first token of each segment.
        logps_NK: log P(segment | option), the sum over its tokens, in nats.
        option_N: the option it was sampled with.
        base_N: log P(segment) under the LM without knobs.
        start_R1: (R + 1) where each response begins; the last entry is N.
    """

    feature_NF: Tensor
    logps_NK: Tensor
    option_N: Tensor
    base_N: Tensor
    start_R1: Tensor

    def _gather(self, response_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) row indices of the segments of some responses and the mask of real ones."""
        length_B = self.start_R1[response_B + 1] - self.start_R1[response_B]
        offset_S = torch.arange(max(1, int(length_B.max())), device=length_B.device)
        mask_BS = offset_S < length_B.unsqueeze(1)
        return torch.where(mask_BS, self.start_R1[response_B].unsqueeze(1) + offset_S, 0), mask_BS

    def __len__(self) -> int:
        """R, the number of responses."""
        return len(self.start_R1) - 1

    def batch(self, response_B: Tensor) -> Batch:
        """Some responses, by index."""
        row_BS, mask_BS = self._gather(response_B.to(self.start_R1.device))
        feature_NF = self.feature_NF.index_select(0, row_BS[mask_BS])
        return make_batch(mask_BS, feature_NF, *(_rows(getattr(self, name), row_BS) for name in PADDED))

    def sample(self, rows: int) -> Tensor:
        """(n, F) features of about `rows` segments, evenly spread over all."""
        return widen(self.feature_NF[:: stride(len(self.feature_NF), rows)])

    def moments(self) -> tuple[Tensor, Tensor]:
        """(F) mean and (F) standard deviation of the features over all segments, in float64."""
        moments = Moments.of(self.feature_NF)
        return moments.mean_F, moments.std_F

    def columns(self, kept: slice) -> "FeatureCache":
        """The same responses with some of their features only."""
        return replace(self, feature_NF=self.feature_NF[:, kept])

    def where(self, keep_N: Tensor) -> "FeatureCache":
        """The same responses with some of their segments only."""
        before_N1 = torch.cat([keep_N.new_zeros(1, dtype=torch.long), keep_N.cumsum(0)])
        rows = {name: getattr(self, name)[keep_N] for name in COLUMNS}
        return FeatureCache(**rows, start_R1=before_N1[self.start_R1])

    @classmethod
    def join(cls, caches: Sequence["FeatureCache"]) -> "FeatureCache":
        """The responses of several, one after the other."""
        length_R = torch.cat([cache.start_R1.diff() for cache in caches])
        rows = {name: torch.cat([getattr(cache, name) for cache in caches]) for name in COLUMNS}
        return cls(**rows, start_R1=torch.cat([length_R.new_zeros(1), length_R.cumsum(0)]))


def make_batch(mask_BS: Tensor, feature_NF: Tensor, logps_BSK: Tensor, option_BS: Tensor, base_BS: Tensor) -> Batch:
    """Features of the real segments, and padded rows as the objectives want them."""
    segment_BS = torch.arange(mask_BS.shape[1], device=mask_BS.device).expand_as(mask_BS)
    return Batch(widen(feature_NF), Responses(logps_BSK, segment_BS, mask_BS, option_BS, base_BS))


def widen(feature: Tensor) -> Tensor:
    """Features as a head reads them: 16 bits become float32, what is wider stays."""
    return feature.float() if feature.dtype.itemsize < 4 else feature


def stride(total: int, rows: int) -> int:
    """The step that takes about `rows` of `total`."""
    return max(1, total // rows)


def _rows(column_N: Tensor, row_BS: Tensor) -> Tensor:
    # Without any rows at all, whatever is asked for is padding.
    return column_N[row_BS] if len(column_N) else column_N.new_zeros(*row_BS.shape, *column_N.shape[1:])
