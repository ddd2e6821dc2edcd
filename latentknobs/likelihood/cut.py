"""How far each row is cut by knob values of its own, read off its best tokens instead of a sorted row.

A sampling step is little arithmetic and many operations, whose start-up is its cost. So a host that can see the values asks
them which operations are needed; on a GPU, where asking would be waiting, all are done, to be replayed as one graph.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentknobs.knob import DecodingKnob, ScalingKnob, TruncationKnob
from latentknobs.likelihood.masses import row_log_masses
from latentknobs.likelihood.prefix import UNCUT, Scaled, sees
from latentknobs.likelihood.rows import rows_where
from latentknobs.likelihood.sorting import top_tokens
from latentknobs.space import KnobSpace

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
    def is_any_open(self) -> Tensor | None:
        """() whether some row is open."""
        return None if self.is_open_N is None else self.is_open_N.any()

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
    top_NM, token_NM = top_tokens(logits_NV, TOP)
    cutting = _Cutting(logits_NV, Scaled(top_NM, top_NM.shape[1] == logits_NV.shape[1], None))
    listed_JN = value_NJ.T.tolist() if value_NJ.device.type == "cpu" else None
    for j, (knob, value_N) in enumerate(zip(space.knobs, value_NJ.unbind(-1), strict=True)):
        neutral = _rounded(knob, value_NJ.dtype)
        neutral_N = None
        if listed_JN is None:
            neutral_N = value_N == neutral
        elif neutral in listed_JN[j]:
            if all(value == neutral for value in listed_JN[j]):
                continue
            neutral_N = value_N == neutral
        act = cutting.scale if isinstance(knob, ScalingKnob) else cutting.truncate
        act(knob, value_N, neutral_N)
    return cutting.result(token_NM)


class _Cutting:
    """N rows on their way through a chain of knobs.

    Counts are closed (completed by the ties of the last kept token) only when somebody reads them: closing the smaller of two
    counts is taking the smaller of the two closed ones.
    """

    def __init__(self, logits_NV: Tensor, scaled: Scaled) -> None:
        self.logits_NV, self.scaled = logits_NV, scaled
        self.kept_N: Tensor | None = None  # None: nothing has cut any row yet
        self.is_closed = True
        self.cuts_all = False  # whether something is known to have cut every row
        self.temperature_N: Tensor | None = None
        self.is_greedy_N: Tensor | None = None
        self.is_unknown_N: Tensor | None = None

    def scale(self, knob: ScalingKnob, value_N: Tensor, neutral_N: Tensor | None) -> None:
        divisor_N = knob.temperature(value_N)
        if neutral_N is not None:
            divisor_N = divisor_N.masked_fill(neutral_N, 1.0)
        if divisor_N.device.type != "cpu" or 0.0 in divisor_N.tolist():
            is_greedy_N = divisor_N == 0
            divisor_N = divisor_N.masked_fill(is_greedy_N, 1.0)
            self.is_greedy_N = is_greedy_N if self.is_greedy_N is None else self.is_greedy_N | is_greedy_N
        self.close()  # ties may come apart, or arise, in rounding
        self.scaled = Scaled(self.scaled.top_RM / divisor_N.unsqueeze(-1), self.scaled.whole, None)
        self.temperature_N = divisor_N if self.temperature_N is None else self.temperature_N * divisor_N

    def truncate(self, knob: TruncationKnob, value_N: Tensor, neutral_N: Tensor | None) -> None:
        kind = sees(knob)
        if kind == "row" and not self.scaled.whole:
            acts_N = torch.ones_like(value_N, dtype=torch.bool) if neutral_N is None else ~neutral_N
            self.is_unknown_N = acts_N if self.is_unknown_N is None else self.is_unknown_N | acts_N
            return
        if kind != "prefix":
            self.close()
            self._doubt(neutral_N)
        own_N = knob.kept(self.scaled.top_RM if kind == "prefix" else self._shown(neutral_N), value_N).long()
        if neutral_N is not None:
            own_N = own_N.masked_fill(neutral_N, UNCUT)
        self.kept_N = own_N if self.kept_N is None else torch.minimum(self.kept_N, own_N)
        self.is_closed, self.cuts_all = False, self.cuts_all or neutral_N is None

    def _doubt(self, neutral_N: Tensor | None) -> None:
        """Where a row is cut beyond the top already, nobody can show what is left of it."""
        if self.kept_N is None or self.scaled.whole:
            return
        is_beyond_N = (self.kept_N > self.scaled.top_RM.shape[1]) & (self.kept_N < UNCUT)
        if is_beyond_N.device.type == "cpu" and not is_beyond_N.any():
            return
        is_beyond_N = is_beyond_N if neutral_N is None else is_beyond_N & ~neutral_N
        self.is_unknown_N = is_beyond_N if self.is_unknown_N is None else self.is_unknown_N | is_beyond_N

    def _shown(self, neutral_N: Tensor | None) -> Tensor:
        """What is left of each row, as far as it is in the top, and the mass of the rest of rows that nothing cuts yet."""
        top_NM, kept_N = self.scaled.top_RM, self.kept_N
        left_NM = top_NM if kept_N is None else top_NM.masked_fill(_places(top_NM) >= kept_N.unsqueeze(-1), -torch.inf)
        if self.scaled.whole or self.cuts_all:
            return left_NM
        is_whole_N = None if kept_N is None else kept_N == UNCUT
        if neutral_N is not None:
            is_whole_N = ~neutral_N if is_whole_N is None else is_whole_N & ~neutral_N
        rows: Tensor | slice | None = slice(None) if is_whole_N is None else rows_where(is_whole_N)
        if rows is None:
            return left_NM
        rest_N = self._rest(rows)
        if is_whole_N is not None:  # on a GPU all rows are read, elsewhere only those
            everywhere_N = torch.full_like(top_NM[:, 0], -torch.inf)
            if isinstance(rows, slice):
                rest_N = torch.where(is_whole_N, rest_N, everywhere_N)
            else:
                rest_N = everywhere_N.index_copy(0, rows, rest_N)
        return torch.cat([left_NM, rest_N.unsqueeze(-1)], -1)

    def _rest(self, rows: Tensor | slice) -> Tensor:
        """(R,) log of the mass of the tokens beyond the top, as a logit."""
        every = isinstance(rows, slice)
        scaled = self.scaled if every else Scaled(self.scaled.top_RM[rows], False, None)
        temperature_R = torch.ones_like(scaled.top_RM[:, 0]) if self.temperature_N is None else self.temperature_N[rows]
        mass_R = row_log_masses(self.logits_NV[rows], temperature_R)
        rest_R = (mass_R.double().exp() - scaled.mass_RM[:, -1]).clamp(min=0).log()
        return rest_R.to(scaled.top_RM.dtype) + scaled.top_RM[:, 0]

    def close(self) -> None:
        """Adds the ties of the last kept token; M + 1 where they may reach beyond the top."""
        if self.is_closed:
            return
        kept_N = self.kept_N
        assert kept_N is not None
        closed_N = self.scaled.close(kept_N.unsqueeze(-1)).squeeze(-1)
        self.kept_N = closed_N if self.cuts_all else torch.where(kept_N < UNCUT, closed_N, kept_N)
        self.is_closed = True

    def result(self, token_NM: Tensor) -> Cut:
        self.close()
        kept_N, temperature_N = self.kept_N, self.temperature_N
        if kept_N is None:
            kept_N = torch.full_like(token_NM[:, 0], UNCUT)
        if temperature_N is None:
            temperature_N = torch.ones_like(self.scaled.top_RM[:, 0])
        if self.is_greedy_N is not None:
            kept_N = kept_N.masked_fill(self.is_greedy_N, 1)
            if self.is_unknown_N is not None:
                self.is_unknown_N = self.is_unknown_N & ~self.is_greedy_N
        return Cut(self.scaled, token_NM, kept_N, temperature_N, self.is_unknown_N, self.is_greedy_N)


def _rounded(knob: DecodingKnob, dtype: torch.dtype) -> float:
    """The neutral value as a tensor of values holds it."""
    return float(np.float32(knob.neutral)) if dtype == torch.float32 else float(knob.neutral)


def _places(top_NM: Tensor) -> Tensor:
    return _counting(top_NM.shape[1], top_NM.device)


@lru_cache(maxsize=16)
def _counting(M: int, device: torch.device) -> Tensor:
    return torch.arange(M, device=device)
