"""What a reward returned, checked before anything is learned from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from latentknobs.errors import RewardError


def check_rewards(values: Iterable[Any], n: int, name: str, prompts: Sequence[Any] | None = None) -> list[float]:
    """`values` as `n` finite floats; RewardError naming the reward, the first bad index and its prompt otherwise.

    Whatever holds real numbers will do: a list, an array, a tensor. `prompts` serve the message only.
    """
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise RewardError(
            f"The reward {name!r} returned {_excerpt(values)}, a {type(values).__name__}: return a list of {n} numbers, "
            "one for each completion."
        )
    items = list(values)
    if len(items) != n:
        raise RewardError(
            f"The reward {name!r} returned {len(items)} values for {n} completions: return exactly one number for each, "
            "in the same order."
        )
    return [_checked(item, i, name, prompts) for i, item in enumerate(items)]


def _checked(item: Any, index: int, name: str, prompts: Sequence[Any] | None) -> float:
    scalar = item.item() if hasattr(item, "item") and getattr(item, "ndim", 0) == 0 else item
    if isinstance(scalar, Real) and math.isfinite(scalar):
        return float(scalar)
    where = f" (prompt {_excerpt(prompts[index])})" if prompts is not None else ""
    raise RewardError(
        f"The reward {name!r} returned {_excerpt(scalar)} for completion {index}{where}: return a finite number for every "
        "completion, for example 0.0 where it cannot judge."
    )


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}..."
