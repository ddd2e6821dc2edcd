"""Where transformers keeps the key-value cache: the name of the argument and of the output changed in version 5.24.

`cache` is the name from 5.24 on, `past_key_values` the one before, `cache_params` that of Mamba models before 5.24.
"""

from collections.abc import Mapping
from typing import Any

from transformers import Cache

NAMES = ("cache", "past_key_values", "cache_params")


def cache_name(values: Mapping[str, Any]) -> str | None:
    """The name under which keyword arguments or a model output hold a cache; None where they hold none."""
    return next((name for name in NAMES if values.get(name) is not None), None)


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among keyword arguments or in a model output; None where there is none."""
    name = cache_name(values)
    return None if name is None else values[name]


def cache_length(values: Mapping[str, Any]) -> Any:
    """How many tokens the cache among these values holds, as an int or a tensor; None where it keeps states (Mamba)."""
    name = cache_name(values)
    cache = None if name in (None, "cache_params") else values[name]
    if not isinstance(cache, Cache) or all(getattr(cache, "is_linear", [False])):
        return None
    return cache.get_seq_length()
