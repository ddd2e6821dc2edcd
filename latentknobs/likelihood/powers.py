"""Masses at several temperatures from one exponential: exp(z / T) is a power of exp(z / U) where U / T is a whole number.

The grid 0.2, 0.4, 0.6, 0.8, 1 has U = 12: powers 60, 30, 20, 15 and 12, made by ten products. A product takes a fifth of the
time of an exponential or less. The n-th power has n times the relative error of its root: at most 64 * 6e-8 in float32.

Cold temperatures end in numbers too small to be normal, with which some processors work very slowly. Factors of high powers
are therefore held above what would make their product one: a token then counts as 1e-38 of the best one instead of as less.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

LARGEST = 64  # power
TINY = -126  # log2 of the smallest normal float32


@dataclass(frozen=True)
class Factor:
    """One factor of a product: which power of the root, the least it may be (None: anything), and whether it is still needed."""

    power: int
    least: float | None
    is_last_use: bool


@dataclass(frozen=True)
class Family:
    """Temperatures that share a root.

    Attributes:
        unit: U; the root is exp(z / U).
        wanted: for each power that is wanted, the indices of its temperature (equal ones may come by different chains).
        products: the powers to make, in ascending order, each with its two factors (or the one that is squared).
    """

    unit: float
    wanted: dict[int, list[int]]
    products: tuple[tuple[int, tuple[Factor, ...]], ...]


@lru_cache(maxsize=64)
def families(temperatures: tuple[float, ...]) -> tuple[Family, ...]:
    """Groups of temperatures, each with as many members as a root can have; a temperature without relatives is alone."""
    left = sorted(range(len(temperatures)), key=lambda q: -temperatures[q])
    out = []
    while left:
        largest = temperatures[left[0]]
        ratio_of: dict[int, Fraction] = {}
        for q in left:
            ratio = Fraction(largest / temperatures[q]).limit_denominator(LARGEST)
            is_exact = abs(float(ratio) * temperatures[q] / largest - 1) < 1e-15
            if is_exact and max(_powers({**ratio_of, q: ratio}).values()) <= LARGEST:
                ratio_of[q] = ratio
        ratio_of = ratio_of or {left[0]: Fraction(1)}
        power_of = _powers(ratio_of)
        unit = largest * power_of[left[0]]
        wanted = {n: [q for q in power_of if power_of[q] == n] for n in power_of.values()}
        out.append(Family(unit, wanted, _products(set(wanted), unit)))
        left = [q for q in left if q not in power_of]
    return tuple(out)


def add_masses(gap_RC: Tensor, temperatures: tuple[float, ...], out_QR: Tensor, work: list[Tensor]) -> None:
    """Adds sum exp(gap / T) of some columns, whose gaps to the best token are 0 or less, to the mass at each temperature.

    Args:
        work: scratch of at least `slots(temperatures)` tensors like `gap_RC`; they are overwritten.
    """
    for family in families(temperatures):
        free = list(work)
        held = {1: free.pop()}
        torch.mul(gap_RC, 1 / family.unit, out=held[1]).exp_()  # exp2 would round by the place of a number in the buffer
        _add(held[1], family.wanted.get(1, []), out_QR)
        for n, factors in family.products:
            for factor in factors:
                if factor.least is not None:  # in place: smaller powers have been summed, and later products hold it above more
                    held[factor.power].clamp_(min=factor.least)
            power_RC = [held[factor.power] for factor in factors]
            free += [held.pop(factor.power) for factor in factors if factor.is_last_use]
            held[n] = torch.mul(power_RC[0], power_RC[-1], out=free.pop())
            _add(held[n], family.wanted.get(n, []), out_QR)


def slots(temperatures: tuple[float, ...]) -> int:
    """How many powers are held at once."""
    most = 1
    for family in families(temperatures):
        held = 1
        for _, factors in family.products:
            held += 1 - sum(factor.is_last_use for factor in factors)
            most = max(most, held)
    return most


def _add(power_RC: Tensor, indices: list[int], out_QR: Tensor) -> None:
    if indices:
        mass_R = power_RC.sum(-1)
        for q in indices:
            out_QR[q].add_(mass_R)


def _powers(ratio_of: dict[int, Fraction]) -> dict[int, int]:
    unit = math.lcm(*(ratio.denominator for ratio in ratio_of.values()))
    return {q: int(ratio * unit) for q, ratio in ratio_of.items()}


def _products(wanted: set[int], unit: float) -> tuple[tuple[int, tuple[Factor, ...]], ...]:
    """Products that make all wanted powers of a root: a square or two known powers where that will do, else by halving."""
    made: dict[int, tuple[int, ...]] = {1: ()}

    def make(n: int) -> None:
        if n in made:
            return
        halves = [n // 2] if n % 2 == 0 else []
        known = next((a for a in [*halves, *sorted(made, reverse=True)] if a in made and n - a in made), 0)
        a = known or (halves or [n - 1])[0]
        make(a)
        make(n - a)
        made[n] = (a,) if 2 * a == n else (a, n - a)

    for n in sorted(wanted):
        make(n)
    del made[1]
    order = sorted(made)
    last = {a: n for n in order for a in made[n]}
    out = []
    for n in order:
        is_cold = n >= 2 * unit  # T of 0.5 and below
        out.append((n, tuple(Factor(a, 2.0 ** (TINY * a / n) if is_cold else None, last[a] == n) for a in made[n])))
    return tuple(out)
