"""Counter-based uniforms: a number in [0, 1) for each (seed, stream, row, position), the same on every device and batch.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied once per key.
"""

import numpy as np
import torch
from torch import Tensor

OPTIONS, TOKENS, REDRAWS = 0, 1, 2  # streams: what a number is for
FEW = 16  # keys that Python's integers mix faster than that many tensor operations take to start
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_STREAM = 0xD1B54A32D192ED03  # far from 1, so that the next stream is not the next row


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def uniforms(seed: int, stream: int, row_N: Tensor, position_N: Tensor) -> Tensor:
    """(N,) float64 in [0, 1).

    Args:
        seed: the run's seed.
        stream: what the number is for (OPTIONS, TOKENS, REDRAWS), so that two uses never share one.
        row_N: (N,) id of the request.
        position_N: (N,) position in its response.
    """
    if len(row_N) <= FEW and row_N.device.type == "cpu":
        start, keys = _start(seed, stream), zip(row_N.tolist(), position_N.tolist(), strict=True)
        return torch.from_numpy(np.array([_number(start, row, position) for row, position in keys]))
    start = _signed(_start(seed, stream))
    x = _mix(_mix(row_N.long() + start) + _signed(_GOLDEN) * (position_N.long() + 1))
    return _shift(_mix(x), 11).double() * 2.0**-53


def uniform(seed: int, stream: int, row: int, position: int) -> float:
    """The number of one key, in Python's own integers."""
    return _number(_start(seed, stream), row, position)


def _start(seed: int, stream: int) -> int:
    return seed * _GOLDEN + stream * _STREAM + 1


def _number(start: int, row: int, position: int) -> float:
    return (_mix_one(_mix_one(_mix_one(row + start) + _GOLDEN * (position + 1))) >> 11) * 2.0**-53


def _mix_one(x: int) -> int:
    x &= _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
