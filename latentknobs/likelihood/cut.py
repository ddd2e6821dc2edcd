"""How far each row is cut by knob values of its own, read off its best tokens instead of a sorted row.

On a GPU, where reading values would be waiting, all operations are done. A host that sees the values leaves out most of them:
see `host`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from latentknobs.knobs.knob import ScalingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.host import HostCut
from latentknobs.likelihood.masses import row_log_masses
from latentknobs.likelihood.prefix import UNCUT, Scaled, sees
from latentknobs.likelihood.sorting import top_tokens
from latentknobs.tensors import host_sees

TOP = 256  # part of what a seed means: another number would order the CDF of uncut rows differently (see decoding.sampler)


@dataclass(frozen=True)
class Cut:
    """What the knobs made of N rows.

    Attributes:
        scaled: the best M tokens of each row, their logits over the temperature; token_NM: their ids.
        kept_N: how many of them are kept: more than M for a cut somewhere beyond, UNCUT where nothing cuts.
        temperature_N: what the logits were divided by (1 in greedy rows).
        is_unknown_N: rows whose cut the top does not tell; None: there are none.
        is_greedy_N: rows in which the first argmax alone is kept; None: there are none.
    """

    scaled: Scaled
    token_NM: Tensor
    kept_N: Tensor
    temperature_N: Tensor
    is_unknown_N: Tensor | None
    is_greedy_N: Tensor | None

    @property
    def top_NM(self) -> Tensor:
        """(N, M) logits of the best tokens over the temperature, descending."""
        return self.scaled.top_RM

    @cached_property
    def count_N(self) -> Tensor:
        """(N,) how many of the best tokens are kept."""
        return self.kept_N.clamp(max=self.token_NM.shape[1])

    @cached_property
    def is_open_N(self) -> Tensor | None:
        """(N,) rows that are not cut, or not known to be cut, inside the top; None where no row can be."""
        if self.scaled.whole:
            return None
        is_beyond_N = self.kept_N > self.token_NM.shape[1]
        return is_beyond_N if self.is_unknown_N is None else is_beyond_N | self.is_unknown_N

    @cached_property
    def is_any_open(self) -> Tensor | bool:
        """() whether some row is open."""
        if self.scaled.whole:
            return False
        assert self.is_open_N is not None
        is_any: Tensor = self.is_open_N.any()
        return is_any

    @property
    def is_uncut_N(self) -> Tensor:
        """(N,) rows in which every token is kept."""
        is_uncut_N = self.kept_N == UNCUT
        return is_uncut_N if self.is_unknown_N is None else is_uncut_N & ~self.is_unknown_N

    def rows(self, rows: Tensor) -> "Cut":
        """The same of some rows."""
        names = ("token_NM", "kept_N", "temperature_N", "is_unknown_N", "is_greedy_N")
        parts: dict[str, Any] = {name: None if (part := getattr(self, name)) is None else part[rows] for name in names}
        return replace(self, scaled=Scaled(self.scaled.top_RM[rows], self.scaled.whole, None), **parts)


def cut_rows(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor) -> Cut:
    """How far each row is cut by its own knob values, read off its best tokens; order-preserving knobs only."""
    if host_sees(logits_NV):
        host = HostCut(logits_NV, space, value_NJ, TOP, lists_greedy=True)
        return told(host, range(host.N))
    top_NM, token_NM = top_tokens(logits_NV, TOP)
    cutting = _Cutting(logits_NV, Scaled(top_NM, top_NM.shape[1] == logits_NV.shape[1], None))
    for knob, value_N in zip(space.knobs, value_NJ.unbind(-1), strict=True):
        is_neutral_N = value_N == knob.neutral
        if isinstance(knob, ScalingKnob):
            cutting.scale(knob, value_N, is_neutral_N)
        else:
            assert isinstance(knob, TruncationKnob)
            cutting.truncate(knob, value_N, is_neutral_N)
    return cutting.result(token_NM)


def told(host: HostCut, rows: Sequence[int]) -> Cut:
    """The same of some rows, in tensors."""
    kept_R, unknown_R, greedy_R = torch.tensor([host.kept[n] for n in rows], dtype=torch.long), None, None
    scaled = Scaled(torch.from_numpy(host.top_NM[rows]), host.is_whole, None)
    temperature_R = torch.ones_like(scaled.top_RM[:, 0])
    if host.temperature_N is not None:
        temperature_R = torch.from_numpy(host.temperature_N[rows])
    if host.unknown:
        unknown_R = torch.tensor([n in host.unknown for n in rows])
    if host.greedy:
        greedy_R = torch.tensor([n in host.greedy for n in rows])
    return Cut(scaled, torch.from_numpy(host.best.tokens(rows)), kept_R, temperature_R, unknown_R, greedy_R)


class _Cutting:
    """N rows on their way through a chain of knobs.

    Counts are closed (completed by the ties of the last kept token) only when somebody reads them: closing the smaller of two
    counts is taking the smaller of the two closed ones.
    """

    def __init__(self, logits_NV: Tensor, scaled: Scaled) -> None:
        self.logits_NV, self.scaled = logits_NV, scaled
        self.kept_N: Tensor | None = None  # nothing has cut any row yet
        self.is_closed = True
        self.temperature_N: Tensor | None = None
        self.is_greedy_N: Tensor | None = None
        self.is_unknown_N: Tensor | None = None

    def scale(self, knob: ScalingKnob, value_N: Tensor, is_neutral_N: Tensor) -> None:
        divisor_N = knob.temperature(value_N).masked_fill(is_neutral_N, 1.0)
        is_greedy_N = divisor_N == 0
        divisor_N = divisor_N.masked_fill(is_greedy_N, 1.0)
        self.is_greedy_N = _either(self.is_greedy_N, is_greedy_N)
        self.close()  # ties may come apart, or arise, in rounding
        self.scaled = Scaled(self.scaled.top_RM / divisor_N.unsqueeze(-1), self.scaled.whole, None)
        self.temperature_N = divisor_N if self.temperature_N is None else self.temperature_N * divisor_N

    def truncate(self, knob: TruncationKnob, value_N: Tensor, is_neutral_N: Tensor) -> None:
        kind = sees(knob)
        if kind == "row" and not self.scaled.whole:
            self.is_unknown_N = _either(self.is_unknown_N, ~is_neutral_N)
            return
        if kind != "prefix":
            self.close()
            self._doubt(is_neutral_N)
        own_N = knob.kept(self.scaled.top_RM if kind == "prefix" else self._shown(is_neutral_N), value_N).long()
        own_N = torch.where(is_neutral_N, UNCUT, own_N)
        self.kept_N = own_N if self.kept_N is None else torch.minimum(self.kept_N, own_N)
        self.is_closed = False

    def _doubt(self, is_neutral_N: Tensor) -> None:
        """Where a row is cut beyond the top already, nobody can show what is left of it."""
        if self.kept_N is None or self.scaled.whole:
            return
        is_beyond_N = (self.kept_N > self.scaled.top_RM.shape[1]) & (self.kept_N < UNCUT) & ~is_neutral_N
        self.is_unknown_N = _either(self.is_unknown_N, is_beyond_N)

    def _shown(self, is_neutral_N: Tensor) -> Tensor:
        """What is left of each row, as far as it is in the top, and the mass of the rest of rows that nothing cuts yet."""
        left_NM, is_whole_N = self.scaled.top_RM, ~is_neutral_N
        if self.kept_N is not None:
            place_M = torch.arange(left_NM.shape[1], device=left_NM.device)
            left_NM = left_NM.masked_fill(place_M >= self.kept_N[:, None], -torch.inf)
            is_whole_N = is_whole_N & (self.kept_N == UNCUT)
        if self.scaled.whole:
            return left_NM
        return torch.cat([left_NM, self._rest().masked_fill(~is_whole_N, -torch.inf).unsqueeze(-1)], -1)

    def _rest(self) -> Tensor:
        """(N,) log of the mass of the tokens beyond the top, as a logit."""
        scaled = self.scaled
        temperature_N = torch.ones_like(scaled.top_RM[:, 0]) if self.temperature_N is None else self.temperature_N
        mass_N = row_log_masses(self.logits_NV, temperature_N)
        rest_N = (mass_N.double().exp() - scaled.mass_RM[:, -1]).clamp(min=0).log()
        return rest_N.to(scaled.top_RM.dtype) + scaled.top_RM[:, 0]

    def close(self) -> None:
        """Adds the ties of the last kept token; M + 1 where they may reach beyond the top."""
        if self.kept_N is not None and not self.is_closed:
            self.kept_N = torch.where(self.kept_N < UNCUT, self.scaled.close(self.kept_N.unsqueeze(-1)).squeeze(-1), self.kept_N)
        self.is_closed = True

    def result(self, token_NM: Tensor) -> Cut:
        self.close()
        kept_N, is_unknown_N, temperature_N = self.kept_N, self.is_unknown_N, self.temperature_N
        if kept_N is None:
            kept_N = torch.full_like(token_NM[:, 0], UNCUT)
        if temperature_N is None:
            temperature_N = torch.ones_like(self.scaled.top_RM[:, 0])
        if self.is_greedy_N is not None:
            kept_N = torch.where(self.is_greedy_N, 1, kept_N)
            is_unknown_N = None if is_unknown_N is None else is_unknown_N & ~self.is_greedy_N
        return Cut(self.scaled, token_NM, kept_N, temperature_N, is_unknown_N, self.is_greedy_N)


def _either(one_N: Tensor | None, other_N: Tensor) -> Tensor:
    return other_N if one_N is None else one_N | other_N
