"""Families of rules that a learned head is compared with, raced against each other on any score.

The grids are those of the papers and of common practice, written out here; see `latentknobs.evaluation.tuning`.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from latentknobs.errors import UnknownNameError, did_you_mean
from latentknobs.evaluation.tuning import beyond, members

T = TypeVar("T")
FEWEST = 32  # prompts in the first heat of a race
ALL = 40  # a family of at most so many members is scored on all prompts at once; only larger ones race
GROWTH = 12  # steps beyond a grid at most
WARM = (0.8, 1.0, 1.2, 1.5)
TURN = tuple(round(0.1 * i, 1) for i in range(1, 16))  # temperatures of the turning point


FAMILIES: dict[str, list[str]] = {
    "edt": members("edt", base=[0.6, 1.0, 1.4, 1.8], theta=[0.3, 1.0, 3.0]),  # arXiv 2403.14541
    "dynatemp": [
        name
        for low, high in ((0.0, 1.5), (0.0, 2.0), (0.4, 1.2), (0.4, 2.0))
        for name in members("dynatemp", low=[low], high=[high], exponent=[0.3, 0.6, 1.0])
    ],
    "min_p": members("constant", temperature=WARM, min_p=[0.02, 0.05, 0.1, 0.2]),  # arXiv 2407.01082
    "top_n_sigma": members("constant", temperature=WARM, top_n_sigma=[0.5, 0.7, 1.0, 1.5]),  # arXiv 2411.07641
    "mirostat": members("mirostat", tau=[0.5, 1.0, 2.0, 3.0, 5.0], eta=[0.1, 0.3]),  # arXiv 2007.14966
    "joint": members(
        "constant", temperature=[0.4, 0.8, 1.0, 1.4], top_p=[0.8, 0.9, 0.95, 1.0], min_p=[0.0, 0.05, 0.15]
    ),
    "temperature": members("constant", temperature=TURN),
}  # fmt: skip


def family(name: str) -> list[str]:
    """The members of a family, as names of policies; UnknownNameError if there is no such family."""
    if name not in FAMILIES:
        raise UnknownNameError(f"There is no family of policies {name!r}. {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def race(candidates: Sequence[T], prompts: int, score: Callable[[T, int], float]) -> T:
    """The best candidate; of many by heats: the better half goes on to twice the prompts, the last four to all.

    Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943).

    Args:
        prompts: how many there are.
        score: what a candidate earns on the first so many prompts.
    """
    left = list(candidates)
    limit = prompts if len(left) <= ALL else min(prompts, max(FEWEST, prompts // 8))
    while len(left) > 1:
        limit = prompts if len(left) <= 4 else limit
        earned = [score(candidate, limit) for candidate in left]
        ranked = [left[i] for i in np.argsort(earned)[::-1]]
        left = ranked[: 1 if limit == prompts else (len(ranked) + 1) // 2]
        limit = min(prompts, 2 * limit)
    return left[0]


def tuned(candidates: Sequence[str], prompts: int, score: Callable[[str, int], float]) -> tuple[str, list[str]]:
    """The best member of a family, raced as in `race`, with grids that grow until the best is not on their edge; and all tried.

    At most `GROWTH` times: what still lies on an edge then gains next to nothing by going on.
    """
    tried, best = list(candidates), race(candidates, prompts, score)
    for _ in range(GROWTH):
        if not (more := beyond(best, tried)):
            break
        tried += more
        best = max([best, *more], key=lambda name: score(name, prompts))
    return best, tried


def turning_point(entropy_T: Sequence[float] | NDArray[np.float64]) -> int:
    """Index of the first temperature where the log of the mean token entropy curves upwards, else the last index.

    TURN (Du et al. 2025, arXiv 2502.05234): no label and no reward is used.

    Args:
        entropy_T: (T,) mean entropy (nats) of the tokens sampled at each of T evenly spaced temperatures, under that temperature.
    """
    second = np.diff(np.log(np.maximum(np.asarray(entropy_T, dtype=float), 1e-12)), 2)
    above = np.nonzero(second > 0)[0]
    return int(above[0]) + 1 if len(above) else len(entropy_T) - 1
