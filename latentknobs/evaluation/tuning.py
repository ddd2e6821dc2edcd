"""Grids of a rule's settings, and what lies beyond them where the best member stands on an edge.

Members are names that `policies.names.policy_of` resolves, so that a winner is a name too: what a user writes after `--policy`.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from latentknobs.knobs.space import short

SMALLEST = 1e-3  # a setting that is not halved any more
RANGES = {"top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "threshold": (0.0, 1.0), "share": (0.0, 1.0)}  # others are 0 or more


def members(rule: str, **grids: Sequence[float]) -> list[str]:
    """A rule with every combination of its settings.

    >>> members("edt", base=[1, 1.4], theta=[3])
    ['edt:base=1,theta=3', 'edt:base=1.4,theta=3']
    """
    combinations = itertools.product(*([f"{name}={value:g}" for value in grid] for name, grid in grids.items()))
    return [f"{rule}:{','.join(settings)}" for settings in combinations]


def settings_of(name: str) -> dict[str, float]:
    """The settings of a member.

    >>> settings_of("edt:base=1.4,theta=3")
    {'base': 1.4, 'theta': 3.0}
    """
    return {key: float(value) for key, _, value in (item.partition("=") for item in name.partition(":")[2].split(","))}


def beyond(best: str, tried: Sequence[str]) -> list[str]:
    """The neighbours of the best member that were not tried: above all those beyond the grid where the best lies on its edge.

    A step repeats the last one of the grid, or goes halfway to 0 where it would pass that. A setting of one value stays as it is.
    """
    rule, found = best.partition(":")[0], []
    grids = [settings_of(name) for name in tried if name.partition(":")[0] == rule]
    for name, value in settings_of(best).items():
        grid = sorted({one[name] for one in grids if name in one})
        if len(grid) < 2:
            continue
        at, (least, most) = grid.index(value), RANGES.get(name, (0.0, np.inf))
        down = grid[at - 1] if at else round(2 * grid[0] - grid[1], 6)
        up = grid[at + 1] if at + 1 < len(grid) else round(2 * grid[-1] - grid[-2], 6)
        down = down if at or down > least else round(value / 2, 6) if value > SMALLEST else least
        for step in (down, min(up, most)):
            changed = settings_of(best) | {name: step}
            found.append(f"{rule}:{','.join(f'{key}={short(number)}' for key, number in changed.items())}")
    return [name for name in dict.fromkeys(found) if name not in tried]
