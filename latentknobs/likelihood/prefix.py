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
UNCUT = 1 << 62  # a count for rows that nothing cuts


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
        log_mass_R: log sum exp(z - max) of the whole row, where the walk needs it.
    """

    top_RM: Tensor
    whole: bool
    log_mass_R: Tensor | None
    own: dict[tuple[float, ...], Tensor] = field(default_factory=dict)

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

    @cached_property
    def open_R1(self) -> Tensor | None:
        """(R, 1) rows whose cut so far lies beyond the top; None where no row can."""
        if self.scaled.whole or self.cut_R is None:
            return None
        return ((self.cut_R == UNKNOWN) | (self.cut_R > self.scaled.top_RM.shape[1])).unsqueeze(-1)


def truncate(knob: TruncationKnob, values: tuple[float, ...], state: State) -> Tensor:
    """(R, G) how many tokens are kept after one more truncation at each of G values, ties included.

    Returns:
        Counts; more than M for a cut somewhere beyond the top, UNKNOWN where the top does not tell.
    """
    scaled, kind = state.scaled, sees(knob)
    if kind == "prefix":  # its own count at each temperature, whatever came before
        memo = (id(knob), *values)
        if memo not in scaled.own:
            scaled.own[memo] = scaled.close(_kept(knob, scaled.top_RM, values))
        own_RG = scaled.own[memo]
        return own_RG if state.cut_R is None else torch.minimum(own_RG, state.cut_R.unsqueeze(-1))
    if kind == "row" and not scaled.whole:
        return torch.full((len(scaled.top_RM), len(values)), UNKNOWN, device=scaled.top_RM.device)
    cut_RG = scaled.close(_kept(knob, state.shown_RW if kind == "mass" else state.row_RV, values))
    if state.cut_R is not None:
        cut_RG = torch.minimum(cut_RG, state.cut_R.unsqueeze(-1))
    return cut_RG if state.open_R1 is None else cut_RG.masked_fill(state.open_R1, UNKNOWN)


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


def _kept(knob: TruncationKnob, sorted_RW: Tensor, values: tuple[float, ...]) -> Tensor:
    """(R, G) counts at all values in one call: a call per value would cost more than its arithmetic."""
    G, R = len(values), len(sorted_RW)
    value_G = torch.tensor(values, dtype=sorted_RW.dtype, device=sorted_RW.device)
    stacked_NW = sorted_RW if G == 1 else sorted_RW.repeat(G, 1)
    return knob.kept(stacked_NW, value_G.repeat_interleave(R)).long().view(G, R).T.contiguous()


def _cut(sorted_RW: Tensor, cut_R: Tensor) -> Tensor:
    place_W = torch.arange(sorted_RW.shape[1], device=sorted_RW.device)
    return sorted_RW.masked_fill(place_W >= cut_R.unsqueeze(-1), -torch.inf)
