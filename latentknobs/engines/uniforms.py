"""Counter-based uniforms: a number in [0, 1) for each (seed, stream, row, position), the same on every device and batch.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied once per key.
"""

from typing import Any

import torch
from torch import Tensor

from latentknobs.tensors import host_sees

OPTIONS, TOKENS, REDRAWS = 0, 1, 2  # streams: what a number is for
_GOLDEN = 0x9E3779B97F4A7C15
_STREAM = 0xD1B54A32D192ED03  # far from 1, so that the next stream is not the next row


def signed(value: int) -> int:
    """A whole number of any size as int64, which wraps around."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Any, bits: int) -> Any:
    """Logical right shift of int64 (that of torch and numpy is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Any) -> Any:
    x = (x ^ _shift(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def uniforms(seed: int | Tensor, stream: int, row_N: Tensor, position_N: Tensor) -> Tensor:
    """(N,) float64 in [0, 1).

    Args:
        seed: the run's seed, or (N,) int64, one for each row.
        stream: what the number is for (OPTIONS, TOKENS, REDRAWS), so that two uses never share one.
        row_N: (N,) id of the request.
        position_N: (N,) position in its response.
    """
    row: Any = row_N.long()
    position: Any = position_N.long()
    if isinstance(seed, Tensor):
        start: Any = seed * signed(_GOLDEN) + signed(stream * _STREAM + 1)  # int64 wraps
    else:
        start = signed(seed * _GOLDEN + stream * _STREAM + 1)
    if host_sees(row_N):
        row, position = row.numpy(), position.numpy()  # the same operations, which start several times faster
        start = start.numpy() if isinstance(start, Tensor) else start
    bits = _shift(_mix(_mix(_mix(row + start) + signed(_GOLDEN) * (position + 1))), 11)
    return bits.double() * 2.0**-53 if isinstance(bits, Tensor) else torch.from_numpy(bits * 2.0**-53)
