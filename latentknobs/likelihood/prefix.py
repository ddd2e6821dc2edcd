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

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from latentknobs.knob import DecodingKnob, ScalingKnob, TruncationKnob
from latentknobs.space import KnobSpace

Key = tuple[float, ...]  # the temperatures that have divided the logits so far
UNKNOWN = 0  # a count that only the sorted row can tell


def is_ordered(knob: DecodingKnob) -> bool:
    """Whether a knob keeps the order of tokens: its `apply` is the one of `ScalingKnob` or `TruncationKnob`."""
    kind = type(knob)
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
        log_mass_R: log sum exp(z - max) of the whole row, where the walk needs it.
    """

    top_RM: Tensor
    whole: bool
    log_mass_R: Tensor | None
    own: dict[tuple[int, float], Tensor] = field(default_factory=dict)

    @cached_property
    def mass_RM(self) -> Tensor:
        """(R, M) float64 cumulative mass relative to the best token."""
        return (self.top_RM - self.top_RM[:, :1]).exp().cumsum(-1, dtype=torch.float64)

    @cached_property
    def _rising_RM(self) -> Tensor:
        return -self.top_RM

    def close(self, count_R: Tensor) -> Tensor:
        """Counts with the ties of the last kept token; M + 1 where they may reach beyond the top."""
        M = self.top_RM.shape[1]
        last_R1 = self._rising_RM.gather(-1, count_R.long().clamp(1, M).unsqueeze(-1) - 1)
        end_R1 = torch.searchsorted(self._rising_RM, last_R1, right=True)
        if not self.whole:
            end_R1 = torch.where(last_R1 < self._rising_RM[:, -1:], end_R1, M + 1)
        return end_R1.squeeze(-1)

    def shown(self) -> Tensor:
        """The whole row as a knob that sees "mass" is shown it: the top, and all other tokens as one last column."""
        if self.whole:
            return self.top_RM
        assert self.log_mass_R is not None
        rest_R = (self.log_mass_R.double().exp() - self.mass_RM[:, -1]).clamp(min=0).log()
        return torch.cat([self.top_RM, (rest_R.to(self.top_RM) + self.top_RM[:, 0]).unsqueeze(-1)], -1)


@dataclass
class State:
    """Where a walk stands: a temperature, and the cut so far (None: nothing is cut)."""

    scaled: Scaled
    cut_R: Tensor | None

    @cached_property
    def shown_RW(self) -> Tensor:
        """What a knob that sees "mass" is shown: everything kept so far, no wider than needed."""
        if self.cut_R is None:
            return self.scaled.shown()
        top_RM = self.scaled.top_RM
        width = min(int(self.cut_R.max()), top_RM.shape[1]) if len(top_RM) else 1
        return _cut(top_RM[:, : max(width, 1)], self.cut_R)

    @property
    def row_RV(self) -> Tensor:
        """What a knob that sees the "row" is shown: all V sorted logits."""
        return self.scaled.top_RM if self.cut_R is None else _cut(self.scaled.top_RM, self.cut_R)

    def open_R(self) -> Tensor | None:
        """Rows whose cut so far lies beyond the top; None where no row can."""
        if self.scaled.whole or self.cut_R is None:
            return None
        return (self.cut_R == UNKNOWN) | (self.cut_R > self.scaled.top_RM.shape[1])


def truncate(knob: TruncationKnob, value: float, state: State) -> Tensor:
    """(R,) how many tokens are kept after one more truncation, ties included.

    Returns:
        Counts; more than M for a cut somewhere beyond the top, UNKNOWN where the top does not tell.
    """
    scaled, kind = state.scaled, sees(knob)
    if kind == "prefix":
        memo = (id(knob), value)
        if memo not in scaled.own:
            scaled.own[memo] = scaled.close(_kept(knob, scaled.top_RM, value))
        own_R = scaled.own[memo]
        return own_R if state.cut_R is None else torch.minimum(own_R, state.cut_R)
    if kind == "row" and not scaled.whole:
        return torch.full_like(scaled.top_RM[:, 0], UNKNOWN, dtype=torch.long)
    cut_R = scaled.close(_kept(knob, state.shown_RW if kind == "mass" else state.row_RV, value))
    if state.cut_R is not None:
        cut_R = torch.minimum(cut_R, state.cut_R)
    open_R = state.open_R()
    return cut_R if open_R is None else cut_R.masked_fill(open_R, UNKNOWN)


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
        temperature = temperature_of(knob, value) if isinstance(knob, ScalingKnob) else None
        out.append(Branch(value, value == knob.neutral, temperature, members, _branches(space, j + 1, members)))
    return tuple(out)


def _kept(knob: TruncationKnob, sorted_RW: Tensor, value: float) -> Tensor:
    return knob.kept(sorted_RW, torch.full_like(sorted_RW[:, 0], value))


def _cut(sorted_RW: Tensor, cut_R: Tensor) -> Tensor:
    place_W = torch.arange(sorted_RW.shape[1], device=sorted_RW.device)
    return sorted_RW.masked_fill(place_W >= cut_R.unsqueeze(-1), -torch.inf)
