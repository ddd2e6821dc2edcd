"""Which versions of transformers this engine is tested with, and what an error says about the versions in use."""

import warnings
from functools import cache

import torch
import transformers

import latentknobs

OLDEST, NEWEST = (5, 17), (5, 24)  # pyproject.toml declares the same range, and both ends are tested


@cache
def announce_untested() -> None:
    """Warns, once in a process, where transformers is older or newer than what is tested."""
    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if not OLDEST <= found <= NEWEST:
        tested = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))
        warnings.warn(
            f"latentknobs is tested with transformers {tested}, and this is {transformers.__version__}. "
            "Every generate verifies that the policy acts; if it raises, install a tested version.",
            stacklevel=3,
        )


def versions() -> str:
    """The versions in use, for errors that they may explain."""
    return f"latentknobs {latentknobs.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
