"""The mass of a whole row at several temperatures: log sum exp(z / T), the only thing that needs every token.

Rows are taken a few at a time so that all passes over a row find it in the cache. Temperatures that are half of another
one cost no exponential: exp(2z) = exp(z) ** 2, so that their masses are sums of squares of probabilities at hand.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from latentknobs.likelihood.sorting import kernels_for

WORK = 1 << 17  # elements in work at once: half a MiB of float32, about the size of a level-2 cache


def log_masses(logits_NV: Tensor, temperatures: Sequence[float], compiled: bool = False) -> tuple[Tensor, Tensor]:
    """How much mass each row has at each temperature, relative to its best token.

    Args:
        logits_NV: (N, V) of any floating dtype.
        temperatures: Q of them, all above 0.
        compiled: one fused pass by `torch.compile` (needs a C++ compiler on a CPU); the same numbers to float32 rounding.

    Returns:
        (N,) the largest logit; (N, Q) log sum exp((z - max) / T), in nats; float32 or wider.
    """
    N, V = logits_NV.shape
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    best_N = logits_NV.amax(-1).to(dtype)
    if compiled and N:
        marked = [logits_NV.view_as(logits_NV), best_N]  # views, so that the marks do not stay on the caller's tensors
        for tensor in marked:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return best_N, _compiled(tuple(temperatures))(*marked)
    out_NQ = torch.empty(N, len(temperatures), dtype=dtype, device=logits_NV.device)
    rows = max(1, WORK // V) if logits_NV.device.type == "cpu" else N
    work = [torch.empty(min(rows, N), V, dtype=dtype, device=logits_NV.device) for _ in range(2)]
    for first in range(0, N, max(rows, 1)):
        part_RV = logits_NV[first : first + rows]
        scratch = [buffer[: len(part_RV)] for buffer in work]
        for ladder in _ladders(tuple(temperatures)):
            for q, mass_R in zip(ladder, _climb(part_RV, temperatures[ladder[0]], len(ladder), scratch), strict=True):
                out_NQ[first : first + rows, q] = mass_R
    return best_N, out_NQ


def row_log_masses(logits_NV: Tensor, temperature_N: Tensor, kernels: bool = False) -> Tensor:
    """(N,) log sum exp((z - max) / T) of whole rows, each at its own temperature above 0."""
    if kernels and (triton := kernels_for(logits_NV)) is not None:
        best_NU, mass_NU = triton.part_masses(logits_NV, temperature_N)
        weight_NU: Tensor = (best_NU - best_NU.amax(-1, keepdim=True)).exp().double() * mass_NU
        return weight_NU.sum(-1).log().float()
    V = logits_NV.shape[1]
    dtype = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    rows = max(1, WORK // V) if logits_NV.device.type == "cpu" else len(logits_NV)
    parts = zip(logits_NV.split(max(rows, 1)), temperature_N.to(dtype).split(max(rows, 1)), strict=True)
    masses = [-torch.softmax(z_RV.to(dtype) / t_R.unsqueeze(-1), -1).amax(-1).log() for z_RV, t_R in parts]
    return torch.cat(masses) if masses else temperature_N.new_zeros(0, dtype=dtype)


def _climb(logits_RV: Tensor, temperature: float, steps: int, scratch: list[Tensor]) -> list[Tensor]:
    """`steps` masses (R,) at T, T/2, T/4, ... from the probabilities at T."""
    scaled_RV, prob_RV = scratch
    if logits_RV.dtype != scaled_RV.dtype:
        logits_RV = scaled_RV.copy_(logits_RV)  # widened first: bfloat16 products would be bfloat16
    if temperature != 1:
        logits_RV = torch.mul(logits_RV, 1.0 / temperature, out=scaled_RV)
    torch.softmax(logits_RV, -1, out=prob_RV)
    log_mass_R = -prob_RV.amax(-1).log()
    masses = [log_mass_R]
    for step in range(1, steps):
        # sum p^2 = Z(T/2) / Z(T)^2, with Z relative to the best token at both temperatures.
        square_R = torch.linalg.vector_norm(prob_RV, dim=-1).square()
        masses.append(square_R.log() + 2 * masses[-1])
        if step + 1 < steps:
            prob_RV.square_().div_(square_R.unsqueeze(-1))
    return masses


@lru_cache(maxsize=64)
def _ladders(temperatures: tuple[float, ...]) -> tuple[tuple[int, ...], ...]:
    """Indices of temperatures, grouped so that in each group every one is half of the one before."""
    left = sorted(range(len(temperatures)), key=lambda q: -temperatures[q])
    ladders = []
    while left:
        ladder = [left.pop(0)]
        while half := [q for q in left if abs(2 * temperatures[q] / temperatures[ladder[-1]] - 1) < 1e-15]:
            ladder.append(half[0])
            left.remove(half[0])
        ladders.append(tuple(ladder))
    return tuple(ladders)


@lru_cache(maxsize=16)
def _compiled(temperatures: tuple[float, ...]) -> Any:
    ladders = _ladders(temperatures)

    def fused(logits_NV: Tensor, best_N: Tensor) -> Tensor:
        gap_NV = logits_NV.to(best_N.dtype) - best_N.unsqueeze(-1)
        masses: dict[int, Tensor] = {}
        for ladder in ladders:
            for step, q in enumerate(ladder):
                weight_NV = torch.exp(
                    gap_NV * (1.0 / temperatures[ladder[0]])
                )  # said again each time: shared, it would be stored
                for _ in range(step):
                    weight_NV = weight_NV * weight_NV
                masses[q] = weight_NV.sum(-1).log()
        return torch.stack([masses[q] for q in range(len(temperatures))], -1)

    return torch.compile(fused)
