"""Curves beyond the intervals of `latentknobs.evaluation.statistics`: votes, fronts.

The prompt is the unit everywhere: samples of one prompt are averaged first.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def vote_accuracy(answers: Sequence[Hashable], right: Hashable, votes: int) -> float:
    """Probability that a majority vote of `votes` of these samples, drawn without replacement, is right.

    Exact over all subsets, hence unbiased for fresh votes. A tie is right with the share of the right answer in it; None
    is no answer and casts no vote.
    """
    if not 0 < votes <= len(answers):
        raise ValueError(f"There are {len(answers)} samples, so {votes} votes cannot be drawn from them.")
    counts = Counter(answers)
    silent, ours = counts.pop(None, 0), counts.pop(right, 0)
    total = 0.0
    for drawn in range(1, min(ours, votes) + 1):
        # ways_AT[a, t]: ways for the others to cast a votes with t of them level with the right answer and none above it
        ways_AT = np.zeros((votes - drawn + 1, len(counts) + 1))
        ways_AT[0, 0] = 1
        for count in counts.values():
            ways_AT = _with_rival(ways_AT, count, drawn)
        for a in range(votes - drawn + 1):
            share = sum(float(ways) / (1 + t) for t, ways in enumerate(ways_AT[a]))
            total += math.comb(ours, drawn) * math.comb(silent, votes - drawn - a) * share
    return total / math.comb(len(answers), votes)


def _with_rival(ways_AT: Floats, count: int, drawn: int) -> Floats:
    """The table after one more rival answer that was given `count` times and may reach `drawn` votes."""
    out_AT = np.zeros_like(ways_AT)
    rows = len(ways_AT)
    for own in range(min(count, drawn, rows - 1) + 1):
        moved_AT = math.comb(count, own) * ways_AT[: rows - own]
        if own == drawn:
            out_AT[own:, 1:] += moved_AT[:, :-1]
        else:
            out_AT[own:] += moved_AT
    return out_AT


def hypervolume(point_C2: Floats, corner_2: Floats) -> float:
    """Area between a corner and the front of some points, both coordinates being better when larger."""
    area, height = 0.0, float(corner_2[1])
    for x, y in sorted(((x, y) for x, y in point_C2.tolist() if x > corner_2[0]), reverse=True):
        area += max(0.0, y - height) * (x - float(corner_2[0]))
        height = max(height, y)
    return area


def hypervolume_gain(ours_CP2: Floats, theirs_CP2: Floats, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Hypervolume of our front minus theirs, with its 95 % bootstrap interval over prompts (both resampled together)."""
    means = np.concatenate([ours_CP2.mean(1), theirs_CP2.mean(1)])
    corner_2 = means.min(0)
    rng = np.random.default_rng(seed)

    def gain(chosen: NDArray[np.int64]) -> float:
        ours, theirs = ours_CP2[:, chosen].mean(1), theirs_CP2[:, chosen].mean(1)
        return hypervolume(ours, corner_2) - hypervolume(theirs, corner_2)

    prompts = ours_CP2.shape[1]
    drawn = [gain(rng.integers(prompts, size=(prompts,))) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return gain(np.arange(prompts)), float(low), float(high)
