"""Triton kernels for what a GPU would otherwise spend most of a sampling step on: the best tokens of a row, and its mass.

Triton comes with torch for NVIDIA GPUs. Where it is missing, `sorting` and `masses` do the same with torch alone.
The best M tokens lie in the M blocks with the best winners. Both choices count: the M-th largest key is found bit by bit,
and among equal keys the first in the row are taken, so that the order of tokens depends on nothing but the row.
"""

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

BLOCK = 32  # tokens per block of the tournament
WIDEST = 8192 * BLOCK  # tokens of the largest vocabulary whose block winners one program can hold
CHUNK = 256  # tokens per part of a row's mass


@triton.jit
def _key(value):  # type: ignore[no-untyped-def]
    """uint32 in the order of float32 values, the two zeros equal; 0 is below all of them."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _places(key, M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which keys are the M largest, the first ones among equals, and the place of each among those, in their order."""
    bound = tl.full((), 0, tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        higher = bound | bit
        bound = tl.where(tl.sum((key >= higher).to(tl.int32), 0) >= M, higher, bound)
        bit = bit >> 1
    above, equal = key > bound, key == bound
    room = M - tl.sum(above.to(tl.int32), 0)
    keep = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))
    return keep, tl.cumsum(keep.to(tl.int32), 0) - 1


@triton.jit
def _winners(logits, winner, stride, V, U, AT_ONCE: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    token = block[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    value = tl.load(logits + row * stride + token, mask=token < V, other=0.0).to(tl.float32)
    key = tl.where(token < V, _key(value), 0)
    tl.store(winner + row * U + block, tl.max(key, 1).to(tl.int32, bitcast=True), mask=block < U)


@triton.jit
def _choose_blocks(winner, chosen, U, M: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    key = tl.load(winner + row * U + block, mask=block < U, other=0).to(tl.uint32, bitcast=True)
    keep, place = _places(key, M)
    tl.store(chosen + row * M + place, block, mask=keep & (block < U))


@triton.jit
def _choose_tokens(logits, chosen, packed, stride, V, M: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, M * WIDTH)
    token = tl.load(chosen + row * M + place // WIDTH) * WIDTH + place % WIDTH
    value = tl.load(logits + row * stride + token, mask=token < V, other=0.0).to(tl.float32)
    key = tl.where(token < V, _key(value), 0)
    keep, place = _places(key, M)
    both = ((key ^ 0x80000000).to(tl.int32, bitcast=True).to(tl.int64) << 32) | (0xFFFFFFFF - token.to(tl.int64))
    tl.store(packed + row * M + place, both, mask=keep)


@triton.jit
def _order(packed, top, token, M: tl.constexpr):  # type: ignore[no-untyped-def]
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, M)
    both = tl.sort(tl.load(packed + row * M + place), descending=True)
    bits = (both >> 32).to(tl.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    tl.store(top + row * M + place, bits.to(tl.float32, bitcast=True))
    tl.store(token + row * M + place, 0xFFFFFFFF - (both & 0xFFFFFFFF))


@triton.jit
def _parts(logits, temperature, best, mass, stride, V, U, AT_ONCE: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    token = part[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    value = tl.load(logits + row * stride + token, mask=token < V, other=-float("inf")).to(tl.float32)
    value = value / tl.load(temperature + row)
    top = tl.max(value, 1)
    finite = tl.where(top == -float("inf"), 0.0, top)
    tl.store(best + row * U + part, top, mask=part < U)
    tl.store(mass + row * U + part, tl.sum(tl.exp(value - finite[:, None]), 1), mask=part < U)


def fits(logits_NV: Tensor, M: int) -> bool:
    """Whether `top_tokens` can take rows of this width."""
    return M & (M - 1) == 0 and M * BLOCK < logits_NV.shape[1] <= WIDEST


def top_tokens(logits_NV: Tensor, M: int) -> tuple[Tensor, Tensor]:
    """(N, M) the largest logits, descending and equal ones by index, as float32; (N, M) their ids."""
    N, V = logits_NV.shape
    U, stride = -(-V // BLOCK), logits_NV.stride(0)
    empty = logits_NV.new_empty
    winner_NU, chosen_NM = empty(N, U, dtype=torch.int32), empty(N, M, dtype=torch.int32)
    packed_NM, token_NM, top_NM = empty(N, M, dtype=torch.long), empty(N, M, dtype=torch.long), empty(N, M, dtype=torch.float32)
    _winners[(N, triton.cdiv(U, 64))](logits_NV, winner_NU, stride, V, U, AT_ONCE=64, WIDTH=BLOCK)
    _choose_blocks[(N,)](winner_NU, chosen_NM, U, M=M, SIZE=triton.next_power_of_2(U), num_warps=16)
    _choose_tokens[(N,)](logits_NV, chosen_NM, packed_NM, stride, V, M=M, WIDTH=BLOCK, num_warps=16)
    _order[(N,)](packed_NM, top_NM, token_NM, M=M)
    return top_NM, token_NM


def part_masses(logits_NV: Tensor, temperature_N: Tensor) -> tuple[Tensor, Tensor]:
    """What the parts of CHUNK tokens of each row hold, U of them, the last one perhaps shorter.

    Returns:
        (N, U) the largest z / T; (N, U) sum exp(z / T - largest); float32.
    """
    N, V = logits_NV.shape
    U = -(-V // CHUNK)
    best_NU = logits_NV.new_empty(N, U, dtype=torch.float32)
    mass_NU = torch.empty_like(best_NU)
    temperature_N = temperature_N.float().contiguous()
    grid = (N, triton.cdiv(U, 8))
    _parts[grid](logits_NV, temperature_N, best_NU, mass_NU, logits_NV.stride(0), V, U, AT_ONCE=8, WIDTH=CHUNK)
    return best_NU, mass_NU
