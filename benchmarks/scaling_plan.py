"""What `benchmarks.scaling` compares, decided before anything is looked at: cells, nested subsets, the rule of saturation.

An axis varies one thing. `pairs`: number of pairs, 4 rollouts a prompt, one pair a prompt. `rollouts`: rollouts per prompt at
a fixed number of pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from latentknobs.data.examples import Pair
from latentknobs.evaluation.statistics import RESAMPLES, Interval
from latentknobs.learners.lpo.pairs import pick_pairs

T = TypeVar("T")
SHALLOW = 4  # rollouts of every prompt; the first prompts have more
BLOCK = 4_000  # prompts enough for 3,000 pairs, ties set aside


@dataclass(frozen=True)
class Cell:
    """Heads fitted alike: on `pairs` pairs, each from the first `rollouts` of a prompt of its own."""

    pairs: int
    rollouts: int
    steps: int

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.pairs}-pairs-of-{self.rollouts}-rollouts-{self.steps}-steps"


@dataclass(frozen=True)
class Plan:
    """The sizes of everything.

    Attributes:
        pool: training prompts of each model, each with `SHALLOW` rollouts: the first of `prompts`.
        deep: how many of them, the first, have `max(rollouts)`.
        steps: optimiser steps of a head.
        seeds: heads of each cell: each has its own subset, initial weights, order of pairs, and sampling at evaluation.
    """

    pool: Mapping[str, int]
    prompts: int = 13_500
    tokens: int = 4_000_000
    deep: int = 400
    pair_counts: tuple[int, ...] = (10, 30, 100, 300, 1_000, 3_000, 10_000)
    rollouts: tuple[int, ...] = (2, 4, 8, 16)
    fixed_pairs: int = 300
    steps: int = 300
    eval_size: int = 640
    tune_size: int = 640
    seeds: int = 3

    def axes(self, size: str) -> dict[str, list[Cell]]:
        """The cells of a model by axis."""
        counts = [n for n in self.pair_counts if n < self.pool[size]]
        return {
            "pairs": [Cell(n, SHALLOW, self.steps) for n in counts],
            "rollouts": [Cell(self.fixed_pairs, r, self.steps) for r in self.rollouts],
        }


def nested(items: Sequence[T], order: Sequence[int], prompt_of: Sequence[int]) -> list[T]:
    """`items` in the order in which their prompts come in `order`: prefixes of the result are nested subsets."""
    place = {prompt: i for i, prompt in enumerate(order)}
    ranked = sorted(range(len(items)), key=lambda i: place[prompt_of[i]])
    return [items[i] for i in ranked]


def shuffled(count: int, seed: int) -> list[int]:
    """0 .. count - 1 in a random order, block by block, so that a larger pool leaves the beginning as it was."""
    rng = np.random.default_rng(seed)
    return [first + i for first in range(0, count, BLOCK) for i in rng.permutation(min(BLOCK, count - first)).tolist()]


def choose_pairs(cell: Cell, rewards: Sequence[Sequence[float]], seed: int) -> list[Pair]:
    """The pairs of a cell for one seed: best against worst of the first rollouts of a prompt, where they differ.

    Args:
        rewards: of every prompt, the rewards of its rollouts. Prompts with fewer than the cell's rollouts are left out.

    Returns:
        Pairs whose `chosen` and `rejected` count the rollouts of their prompt from 0; fewer than requested if there are no more.
    """
    order = [p for p in shuffled(len(rewards), seed) if len(rewards[p]) >= cell.rollouts]
    flat = [(p, r) for p in order for r in range(cell.rollouts)]
    found = pick_pairs([p for p, _ in flat], [rewards[p][r] for p, r in flat], "best_worst", seed=0)
    local = [Pair(pair.prompt, flat[pair.chosen][1], flat[pair.rejected][1]) for pair in found]
    return nested(local, order, [pair.prompt for pair in local])[: cell.pairs]


def interval(gain_SP: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean over S heads and P prompts with its 95 % interval: heads and prompts are drawn anew in every resample.

    With three heads it is rather too narrow than too wide, but less so than one over prompts alone.
    """
    heads, prompts = gain_SP.shape
    rng = np.random.default_rng(seed)
    means = [
        gain_SP[rng.integers(heads, size=heads)].mean(0)[rng.integers(prompts, size=prompts)].mean() for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(gain_SP.mean()), float(low), float(high))


def saturation(gain_CSP: NDArray[np.float64]) -> tuple[int, list[Interval]]:
    """The first of C values in growing order that no later one exceeds, and what the last one has above each.

    "Exceeds" means that the 95 % interval of the difference, paired over S seeds and P prompts, lies above 0. This is no proof
    that nothing is left to gain: read it with the intervals that are returned.
    """
    count = len(gain_CSP)
    above = [[interval(gain_CSP[later] - gain_CSP[c]) for later in range(c + 1, count)] for c in range(count)]
    first = next(c for c in range(count) if all(difference.low <= 0 for difference in above[c]))
    return first, [interval(gain_CSP[-1] - gain_SP) for gain_SP in gain_CSP]
