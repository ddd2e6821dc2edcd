"""Paired comparisons with bootstrap intervals. The prompt is the unit: seeds are averaged within it first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % percentile bootstrap interval over prompts."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(value_P: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean over P prompts and its 95 % interval (percentile bootstrap, 4000 resamples; Efron 1979).

    One resampling plan for equal P and seed, so that intervals of one table belong together.
    """
    values = np.asarray(value_P, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.concatenate([values[rng.integers(len(values), size=(100, len(values)))].mean(1) for _ in range(RESAMPLES // 100)])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def win_share(ours_SP: NDArray[np.float64], theirs_SP: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) share of seeds in which ours beats theirs on each prompt; a tie counts one half."""
    wins_SP = (ours_SP > theirs_SP) + 0.5 * (ours_SP == theirs_SP)
    return np.asarray(wins_SP.mean(0))
