"""Option grids: the check of a grid, and the error messages about a bad one."""

import math
from typing import Any

LONGEST = 4096  # values of one grid; more is a grid by mistake


def check_ascending(options: tuple[float, ...]) -> tuple[float, ...]:
    """The grid; ValueError if it is not finite, unique, ascending, or is too long, with the grid that was probably meant."""
    if not options:
        raise ValueError("it is empty; give at least one value")
    if len(options) > LONGEST:
        raise ValueError(f"it has {len(options):,} values, more than {LONGEST:,}; leave some out")
    if not all(math.isfinite(value) for value in options):
        raise ValueError("every value must be finite")
    if len(set(options)) < len(options):
        raise ValueError(f"values repeat; write {show(sorted(set(options)))}")
    if list(options) != sorted(options):
        raise ValueError(f"values must ascend; write {show(sorted(options))}")
    return options


def explain(item: Any) -> str:
    """One pydantic error as a sentence: which value, and what is wrong with it."""
    cause = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"there is no setting {item['loc'][0]!r}"
    shown = f"value {item['input']!r}: " if len(item["loc"]) > 1 else ""
    return shown + cause[:1].lower() + cause[1:]


def show(values: Any) -> str:
    """A grid as the user would write it; anything else as Python shows it."""
    if not isinstance(values, list | tuple):
        return repr(values)
    if len(values) > 32:
        return f"[{show(values[:4])[1:-1]}, ..., {show(values[-1:])[1:]} of {len(values):,} values"
    return "[" + ", ".join(f"{v:g}" if isinstance(v, int | float) else repr(v) for v in values) + "]"
