"""Mean and standard deviation of features in float64, piece by piece: what is added up in the same order is the same number."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4096  # rows that are held in float64 at once


@dataclass(frozen=True)
class Moments:
    """Of some rows."""

    count: int  # how many rows
    mean_F: Tensor  # their mean, zeros where there are none
    square_F: Tensor  # sum of squared differences from the mean

    @classmethod
    def of(cls, feature_NF: Tensor) -> "Moments":
        """The moments of (N, F) features, in float64."""
        total = cls(0, *feature_NF.new_zeros(2, feature_NF.shape[1], dtype=torch.float64))
        for part_NF in feature_NF.split(BLOCK):
            total += cls._of_block(part_NF.double())
        return total

    @classmethod
    def _of_block(cls, feature_NF: Tensor) -> "Moments":
        mean_F = feature_NF.sum(0) / max(1, len(feature_NF))
        return cls(len(feature_NF), mean_F, (feature_NF - mean_F).square().sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        """Of both sets of rows (Chan, Golub, LeVeque 1979, Eq. 2.1); exact where one is empty."""
        count = self.count + other.count
        share = other.count / max(1, count)
        step_F = other.mean_F - self.mean_F
        square_F = self.square_F + other.square_F + step_F.square() * (self.count * share)
        return Moments(count, self.mean_F + step_F * share, square_F)

    @property
    def std_F(self) -> Tensor:
        """(F) standard deviation, with the divisor N; zeros where there are no rows."""
        return (self.square_F / max(1, self.count)).sqrt()
