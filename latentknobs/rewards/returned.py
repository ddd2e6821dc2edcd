"""What a reward returned, read item by item: a number, None, or the cause of a failure."""

import math
from collections.abc import Iterable, Mapping, MappingView, Set, Sized
from decimal import Decimal
from itertools import islice
from numbers import Real
from typing import Any, NamedTuple

from latentknobs.errors import BrokenRewardError

NOT_LISTS = (str, bytes, bytearray, memoryview, Set, Mapping, MappingView)  # texts, and what has no order of its own


class Failed(float):
    """A reward may return this in place of a number: the reason why it could not score this one completion.

    It is a NaN, which TRL reads as "no reward".
    """

    why: str

    def __new__(cls, why: str) -> "Failed":
        failed = super().__new__(cls, "nan")
        failed.why = why
        return failed

    def __repr__(self) -> str:
        return f"Failed({self.why!r})"


class Answer(NamedTuple):
    """What one reward says of one completion. Neither a value nor an error: the reward does not apply to it."""

    value: float | None
    error: str | None = None


def listed(values: Any, n: int, name: str) -> list[Any]:
    """What a reward returned, of any kind that has an order, as a list; BrokenRewardError if it does not hold `n` values."""
    dimensions = getattr(values, "ndim", 1)
    if isinstance(values, NOT_LISTS) or not isinstance(values, Iterable) or dimensions != 1:
        shape = "" if dimensions == 1 else f" of {dimensions} dimensions"
        raise BrokenRewardError(
            f"The reward {name!r} returned {_excerpt(values)}, a {type(values).__name__}{shape}: return a list of {n} numbers, "
            "one for each completion, in the same order."
        )
    items = values.tolist() if hasattr(values, "tolist") else list(islice(values, n + 1))  # an iterator may never end
    if len(items) != n:
        count = len(values) if isinstance(values, Sized) else len(items) if len(items) < n else f"more than {n}"
        hint = "" if isinstance(values, Sized) else f" A {type(values).__name__} can be read only once."
        raise BrokenRewardError(
            f"The reward {name!r} returned {count} values for {n} completions: return exactly one number for each, in the same "
            f"order.{hint}"
        )
    return items


def check_answer(item: Any) -> Answer:
    """The answer in one value of a list. What is not a finite number has an error; None means "not applicable", as in TRL."""
    if isinstance(item, Failed):
        return Answer(None, item.why)
    scalar = item.item() if hasattr(item, "item") and getattr(item, "ndim", 0) == 0 else item
    if scalar is None:
        return Answer(None)
    try:
        if isinstance(scalar, Real | Decimal) and math.isfinite(scalar):
            return Answer(float(scalar))
    except (OverflowError, ValueError):  # a whole number beyond the range of floats; a signalling NaN
        pass
    return Answer(None, f"It returned {_excerpt(scalar)}, which is not a finite number.")


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}..."
