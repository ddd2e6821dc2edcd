"""The mass of a whole row at several temperatures: log sum exp(z / T), the only thing that needs every token.

Rows are taken a few at a time so that all passes over a row find it in the cache. One exponential per token serves all
temperatures that have a common multiple of a kind: see `powers`.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from latentknobs.likelihood.powers import add_masses, slots

WORK = 1 << 17  # elements in work at once: half a MiB of float32, about the size of a level-2 cache
PRODUCTS = 1 << 18  # the same where a few rows go through some twenty operations, each of which takes time to start


def log_masses(logits_NV: Tensor, temperatures: Sequence[float]) -> tuple[Tensor, Tensor]:
    """How much mass each row has at each temperature, relative to its best token.

    Args:
        logits_NV: (N, V) of any floating dtype.
        temperatures: Q of them, all above 0.

    Returns:
        (N,) the largest logit; (N, Q) log sum exp((z - max) / T), in nats; float32 or wider.
    """
    N, V = logits_NV.shape
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    best_N = logits_NV.amax(-1).to(dtype)
    out_QN = torch.zeros(len(temperatures), N, dtype=dtype, device=logits_NV.device)
    rows, columns = (max(1, PRODUCTS // V), min(V, PRODUCTS)) if logits_NV.device.type == "cpu" else (max(N, 1), V)
    gaps, *work = _scratch(slots(tuple(temperatures)) + 1, min(rows, N) * columns, dtype, logits_NV.device)
    for first in range(0, N, rows):
        here = slice(first, first + rows)
        for part_RC in logits_NV[here].split(columns, -1):
            gap_RC, *work_RC = (buffer[: part_RC.numel()].view(part_RC.shape) for buffer in (gaps, *work))
            torch.sub(part_RC, best_N[here].unsqueeze(-1), out=gap_RC)
            add_masses(gap_RC, tuple(temperatures), out_QN[:, here], work_RC)
    return best_N, out_QN.log_().T


class _Kept(threading.local):
    """What one thread keeps from call to call: for small vocabularies, new pages would cost more than the work in them."""

    buffer = torch.empty(0)


_kept = _Kept()


def _scratch(count: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(count, size) of anything; on a CPU it is overwritten by the next call."""
    if device.type != "cpu":
        return torch.empty(count, size, dtype=dtype, device=device)
    if _kept.buffer.dtype != dtype or _kept.buffer.numel() < count * size:
        with torch.inference_mode(False):  # or it could not be written to outside of it
            _kept.buffer = torch.empty(count * size, dtype=dtype)
    return _kept.buffer[: count * size].view(count, size)


def row_log_masses(logits_NV: Tensor, temperature_N: Tensor) -> Tensor:
    """(N,) log sum exp((z - max) / T) of whole rows, each at its own temperature above 0."""
    V = logits_NV.shape[1]
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    rows = max(1, WORK // V) if logits_NV.device.type == "cpu" else len(logits_NV)
    parts = zip(logits_NV.split(max(rows, 1)), temperature_N.to(dtype).split(max(rows, 1)), strict=True)
    masses = [-torch.softmax(z_RV.to(dtype) / t_R.unsqueeze(-1), -1).amax(-1).log() for z_RV, t_R in parts]
    return torch.cat(masses) if masses else temperature_N.new_zeros(0, dtype=dtype)
