"""Chains of order-preserving knobs as cuts of one descending order.

Scaling keeps the order of tokens and truncation keeps a prefix of it, so an option is a temperature and a number of kept
tokens. The walk goes once through the tree of distinct chain beginnings (384 options of four knobs share 6 temperatures)
and asks each knob for its cut on the top of the row only.

What a truncation knob may look at beyond the top is its class variable `sees`:
    "prefix": nothing; cutting the row first changes its count only where the count would exceed the cut (top-k, min-p);
    "mass": the total mass of the tokens beyond, shown to `kept` as one last column (top-p);
    "row": every token (the default, right for any knob): such options wait for the sorted row.
A cut that falls beyond the top, or between tokens that tie with its last one, is left open for the sorted row as well.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from latentknobs.knobs.knob import DecodingKnob, ScalingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace

Key = tuple[float, ...]  # the temperatures that have divided the logits so far
UNKNOWN = 0  # a count that only the sorted row can tell
UNCUT = 1 << 30  # a count for rows that nothing cuts; counts fit into int32


def is_ordered(knob: DecodingKnob) -> bool:
    """Whether a knob keeps the order of tokens: its `apply` is the one of `ScalingKnob` or `TruncationKnob`."""
    return _keeps_order(type(knob))


@lru_cache(maxsize=256)
def _keeps_order(kind: type[DecodingKnob]) -> bool:
    return kind.apply in (ScalingKnob.apply, TruncationKnob.apply) and kind.apply_in is DecodingKnob.apply_in


def sees(knob: DecodingKnob) -> str:
    """What the knob's `kept` reads beyond its own cut."""
    return getattr(knob, "sees", "row")


def temperature_of(knob: ScalingKnob, value: float) -> float:
    """The temperature that one value of a scaling knob stands for."""
    return float(knob.temperature(torch.tensor([value], dtype=torch.float64)))


def product(key: Key) -> float:
    """The temperature that several divisions amount to."""
    out = 1.0
    for temperature in key:
        out *= temperature
    return out


@dataclass
class Scaled:
    """The top of R rows at one temperature.

    Attributes:
        top_RM: descending logits, divided by the temperature.
        whole: whether these are all tokens of the row.
        log_mass_R: log sum exp(z - max) of the whole row, or None.
    """

    top_RM: Tensor
    whole: bool
    log_mass_R: Tensor | None

    @cached_property
    def mass_RM(self) -> Tensor:
        """(R, M) float64 cumulative mass relative to the best token."""
        return (self.top_RM - self.top_RM[:, :1]).exp().cumsum(-1, dtype=torch.float64)

    @cached_property
    def _rising_RM(self) -> Tensor:
        return -self.top_RM

    def close(self, count_RG: Tensor) -> Tensor:
        """(R, G) counts with the ties of the last kept token; M + 1 where they may reach beyond the top."""
        M = self.top_RM.shape[1]
        last_RG = self._rising_RM.gather(-1, count_RG.clamp(1, M) - 1)
        end_RG = torch.searchsorted(self._rising_RM, last_RG, right=True)
        return end_RG if self.whole else end_RG + (end_RG == M)


@dataclass(frozen=True)
class Branch:
    """A value of one knob, the options that have it (and agree in all knobs before), and what follows."""

    value: float
    is_neutral: bool
    temperature: float | None  # of a scaling knob
    ks: list[int]
    following: tuple["Branch", ...]


@lru_cache(maxsize=256)
def tree(space: KnobSpace) -> tuple[Branch, ...]:
    """The distinct chain beginnings of a space's options."""
    return _branches(space, 0, list(range(space.K)))


def _branches(space: KnobSpace, j: int, ks: list[int]) -> tuple[Branch, ...]:
    if j == len(space.knobs):
        return ()
    knob = space.knobs[j]
    groups: dict[int, list[int]] = {}
    for k in ks:
        groups.setdefault(space.grid_KJ[k][j], []).append(k)
    out = []
    for index, members in groups.items():
        value = knob.options[index]
        is_neutral, temperature = value == knob.neutral, None
        if isinstance(knob, ScalingKnob):
            temperature = 1.0 if is_neutral else temperature_of(knob, value)
            is_neutral = temperature == 1
        out.append(Branch(value, is_neutral, temperature, members, _branches(space, j + 1, members)))
    return tuple(out)
