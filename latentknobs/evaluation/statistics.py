"""Paired comparisons with intervals. The prompt is the unit: samples of one prompt are averaged first.

Prompts by whatever covers (benchmarks/intervals.py: at least .93 in simulation where .95 is promised, from 16 prompts on): the
wider of bootstrap-t and Student's t where values vary; where many are equal, as with rare events, Student's t after two
more prompts, one at each end of what could have been seen (Bonett and Price 2012 for paired proportions, here for any values).
Training seeds by Student's t with Satterthwaite's degrees of freedom: a bootstrap of three seeds covers too little.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

RESAMPLES = 4000
FEWEST = 16  # prompts of a bootstrap
EVENTS = 24  # prompts that differ from the most common value; with fewer than these, and than half, they are rare events
ALPHA = 0.05
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        p: two-sided, of the value that says "no difference"; below .05 exactly where that value lies outside the interval, as far
            as there is one training seed.
    """

    mean: float
    low: float
    high: float
    p: float = 1.0

    def within(self, low: float, high: float) -> "Interval":
        """The same, cut at limits that no mean can pass, such as 0 and 1 of a share; extremes that occurred are no limits."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(value: Sequence[float] | Floats, ends: tuple[float, float] | None = None, null: float = 0.0) -> Interval:
    """The mean of some values with its interval.

    Args:
        value: (P,) one for each prompt, or (R, P) with R training seeds.
        ends: least and greatest value that a prompt could have; by default those that occur, 1 apart if there is only one.
        null: the mean of which `p` is the probability.
    """
    value_RP = np.atleast_2d(np.asarray(value, dtype=np.float64))
    value_P = value_RP.mean(0)
    low, high = ends or (float(value_P.min()), float(value_P.max()))
    if low == high:
        low, high = low - 1, high + 1
    mean, P = float(value_P.mean()), value_P.size
    different = P - np.unique(value_P, return_counts=True)[1].max()
    is_rare = different < min(EVENTS, P / 2)
    below, above, p = _two_more(value_P, low, high, null) if is_rare or P < FEWEST else _bootstrap(value_P, null)
    if len(value_RP) > 1:
        below, above, p = _over_seeds(value_RP, null, below, above, p)
    return Interval(mean, float(mean - below), float(mean + above), p)


def _two_more(value_P: Floats, low: float, high: float, null: float) -> tuple[float, float, float]:
    """How far the interval reaches below and above the mean, and p: of Student's t with a prompt at each end."""
    more = np.concatenate([value_P, [low, high]])
    error, df = more.std(ddof=1) / np.sqrt(more.size), more.size - 1
    half, shift = stdtrit(df, 1 - ALPHA / 2) * error, value_P.mean() - more.mean()
    # the plain mean stays inside, also where the two prompts pull away from it
    return max(half + shift, 0.0), max(half - shift, 0.0), float(2 * stdtr(df, -abs(more.mean() - null) / error))


def _bootstrap(value_P: Floats, null: float) -> tuple[float, float, float]:
    """The same of the wider of bootstrap-t (Efron 1981) and Student's t, and a little wider for few prompts."""
    P, centred_P = value_P.size, value_P - value_P.mean()
    error = value_P.std(ddof=1) / np.sqrt(P)
    count_BP = _plan(P)
    mean_B = count_BP @ centred_P / P
    variance_B = np.maximum(count_BP @ centred_P**2 / P - mean_B**2, 1e-12 * centred_P.var())
    t_B = mean_B / np.sqrt(variance_B / (P - 1))
    least, most = np.quantile(t_B, [ALPHA / 2, 1 - ALPHA / 2])
    student, wider = float(stdtrit(P - 1, 1 - ALPHA / 2)), np.sqrt((P + 4) / P)
    t = (value_P.mean() - null) / error / wider
    beyond = min((t_B >= t).mean(), (t_B <= t).mean())  # 0 where the resamples do not reach: then Student's t decides
    p = min(1.0, 2 * max(float(beyond), float(stdtr(P - 1, -abs(t)))))
    return max(most, student) * error * wider, max(-least, student) * error * wider, p


def _over_seeds(value_RP: Floats, null: float, below: float, above: float, p: float) -> tuple[float, float, float]:
    """The same for new training seeds, too: prompts and seeds are crossed, and their variances add up."""
    R, P = value_RP.shape
    seed_R, prompt_P = value_RP.mean(1), value_RP.mean(0)
    rest_RP = value_RP - seed_R[:, None] - prompt_P + value_RP.mean()
    both = float((rest_RP**2).sum() / max((R - 1) * (P - 1), 1) / (R * P))
    by_seed, by_prompt = float(seed_R.var(ddof=1) / R), float(prompt_P.var(ddof=1) / P) if P > 1 else 0.0
    total = max(by_seed + by_prompt - both, by_prompt)
    if total == 0:
        return below, above, p
    # Satterthwaite's formula is for sums: `both`, which is taken off, may bring it below the smaller of its parts, even to 0
    df = max(total**2 / (by_seed**2 / (R - 1) + by_prompt**2 / max(P - 1, 1)), min(R - 1, max(P - 1, 1)))
    student, alone = float(stdtrit(df, 1 - ALPHA / 2)), float(stdtrit(max(P - 1, 1), 1 - ALPHA / 2))
    further = max(student / alone, 1.0)
    added = student**2 * (total - by_prompt)
    t = abs(value_RP.mean() - null) / np.sqrt(total)
    return (
        float(np.sqrt((below * further) ** 2 + added)), float(np.sqrt((above * further) ** 2 + added)),
        max(p, float(2 * stdtr(df, -t))),
    )  # fmt: skip


@lru_cache(maxsize=4)
def _plan(P: int) -> NDArray[np.float32]:
    """(B, P) how often each prompt is in each resample: one plan for equal P, so that intervals of one table belong together."""
    rng = np.random.default_rng(0)
    drawn_BP = rng.integers(P, size=(RESAMPLES, P)) + P * np.arange(RESAMPLES)[:, None]
    return rearrange(np.bincount(drawn_BP.ravel(), minlength=RESAMPLES * P).astype(np.float32), "(B P) -> B P", P=P)


def wins(ours_SP: Floats, theirs_SP: Floats) -> Floats:
    """(S, P) 1 where ours beats theirs; a tie counts one half."""
    return np.asarray((ours_SP > theirs_SP) + 0.5 * (ours_SP == theirs_SP))


def holm(p_M: Sequence[float], weight_M: Sequence[float] | None = None) -> list[float]:
    """p-values corrected for M comparisons, step by step from the smallest (Holm 1979).

    Args:
        weight_M: what share of the error each comparison may use up; by default all alike.
    """
    weights = [1.0] * len(p_M) if weight_M is None else list(weight_M)
    adjusted, worst, left = [1.0] * len(p_M), 0.0, sum(weights)
    for m in sorted(range(len(p_M)), key=lambda m: p_M[m] / weights[m]):
        worst = max(worst, min(1.0, left / weights[m] * p_M[m]))
        adjusted[m], left = worst, left - weights[m]
    return adjusted
