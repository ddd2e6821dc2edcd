"""What a reward returned, read item by item: a number, nothing, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, NamedTuple

from latentknobs.errors import BrokenRewardError


class Failed(float):
    """A reward may return this in place of a number: why it could not judge this one completion.

    It is a NaN, so that TRL, which knows nothing of it, reads it as "no reward".
    """

    why: str

    def __new__(cls, why: str) -> Failed:
        made = super().__new__(cls, "nan")
        made.why = why
        return made

    def __repr__(self) -> str:
        return f"Failed({self.why!r})"


class Answer(NamedTuple):
    """What one reward says of one completion. Neither a value nor an error: the reward does not apply to it."""

    value: float | None
    error: str | None = None


def listed(values: Any, n: int, name: str) -> list[Any]:
    """What a reward returned for `n` completions, as a list. A list, an array, a tensor or a generator will do.

    Raises:
        BrokenRewardError: it is none of these.
    """
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise BrokenRewardError(
            f"The reward {name!r} returned {_excerpt(values)}, a {type(values).__name__}: return a list of {n} numbers, "
            "one for each completion."
        )
    return list(values)


def check_rewards(values: Any, n: int, name: str) -> list[Answer]:
    """`n` answers out of what the reward `name` returned for `n` completions. What is no finite number has an error.

    None means "not applicable", as in TRL.

    Raises:
        BrokenRewardError: there are not `n` values.
    """
    items = listed(values, n, name)
    if len(items) != n:
        raise BrokenRewardError(
            f"The reward {name!r} returned {len(items)} values for {n} completions: return exactly one number for each, "
            "in the same order."
        )
    return [_checked(item) for item in items]


def _checked(item: Any) -> Answer:
    if isinstance(item, Failed):
        return Answer(None, item.why)
    scalar = item.item() if hasattr(item, "item") and getattr(item, "ndim", 0) == 0 else item
    if scalar is None:
        return Answer(None)
    try:
        if isinstance(scalar, Real) and math.isfinite(scalar):
            return Answer(float(scalar))
    except OverflowError:  # a whole number beyond the range of floats
        pass
    return Answer(None, f"It returned {_excerpt(scalar)}, which is no finite number.")


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}..."
