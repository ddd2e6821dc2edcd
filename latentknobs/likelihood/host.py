"""How far each row is cut by knob values of its own, on the host: the quick twin of `cut`, which works for any device.

A sampling step is little arithmetic and many operations, whose start-up is its cost. Here the host looks at the values before
it works, keeps what is known of a row in Python's own numbers, and leaves arrays to numpy, which starts several times faster
than torch. Only `kept` and `temperature` of the knobs, and the mass of whole rows, are torch's.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentknobs.knob import ScalingKnob, TruncationKnob
from latentknobs.likelihood.masses import row_log_masses
from latentknobs.likelihood.prefix import UNCUT, sees
from latentknobs.likelihood.sorting import best_by_bound
from latentknobs.space import KnobSpace


class HostCut:
    """N rows on their way through a chain of order-preserving knobs, and what became of them.

    Attributes:
        best: the best M tokens of each row; top_NM: numpy; their logits over the temperature.
        kept: how many are kept in each row: more than M for a cut somewhere beyond, UNCUT where nothing cuts.
        unknown: rows whose cut the top does not tell; greedy: rows in which the first argmax alone is kept.
        temperature_N: numpy; what the logits were divided by (1 in greedy rows).
        is_whole: whether the top is all there is.

    Counts are closed (completed by the ties of the last kept token) only when somebody reads them: closing the smaller of two
    counts is taking the smaller of the two closed ones.
    """

    def __init__(self, logits_NV: Tensor, best: int) -> None:
        self.logits_NV = logits_NV
        self.best = best_by_bound(logits_NV, best)
        self.top_NM = self.best.value_NM
        self.N, self.M = self.top_NM.shape
        self.is_whole = logits_NV.shape[1] == self.M
        self.kept: list[int] = [UNCUT] * self.N
        self.is_closed = True
        self.unknown: set[int] = set()
        self.greedy: set[int] = set()
        self.temperature_N: Any = None

    def run(self, space: KnobSpace, value_NJ: Tensor) -> "HostCut":
        """Takes all knobs of a space, with the values of each row."""
        column_JN = np.ascontiguousarray(value_NJ.numpy().T)
        for knob, column_N in zip(space.knobs, column_JN, strict=True):
            neutral = column_N.dtype.type(knob.neutral)  # as the values hold it
            rows = [n for n, value in enumerate(column_N.tolist()) if value != neutral]
            if not rows:
                continue
            if isinstance(knob, ScalingKnob):
                self._scale(knob, torch.from_numpy(column_N), rows)
            else:
                assert isinstance(knob, TruncationKnob)
                self._truncate(knob, torch.from_numpy(column_N), rows)
        self._close()
        for n in self.greedy:
            self.kept[n] = 1
        self.unknown -= self.greedy
        return self

    @property
    def is_any_open(self) -> bool:
        """Whether some row is not cut, or not known to be cut, inside the top."""
        return not self.is_whole and (bool(self.unknown) or max(self.kept, default=0) > self.M)

    def draw(self, u_N: Sequence[float]) -> list[int]:
        """A token of each row by inverse CDF over the kept ones, or over the top in rows that are open."""
        tokens = []
        for n, (u, kept) in enumerate(zip(u_N, self.kept, strict=True)):
            mass_M = self._mass(n, kept)
            place = mass_M.searchsorted(u * mass_M[-1], "right")  # u < 1: never beyond the last one kept
            tokens.append(self.best.token(n, int(place)))
        return tokens

    def _mass(self, n: int, kept: int = UNCUT) -> Any:
        """(M,) or fewer: float64 cumulative mass of the best tokens of a row relative to the first."""
        top_M = self.top_NM[n, :kept]
        return np.exp(top_M - top_M[0]).astype(np.float64).cumsum()  # at once, in float64, it would take twice as long

    def _scale(self, knob: ScalingKnob, value_N: Tensor, rows: list[int]) -> None:
        told, divisors = knob.temperature(value_N).tolist(), [1.0] * self.N
        for n in rows:
            if told[n] == 0:
                self.greedy.add(n)
            else:
                divisors[n] = told[n]
        self._close()  # ties may come apart, or arise, in rounding
        divisor_N = np.array(divisors, self.top_NM.dtype)
        self.top_NM = self.top_NM / divisor_N[:, None]
        self.temperature_N = divisor_N if self.temperature_N is None else self.temperature_N * divisor_N

    def _truncate(self, knob: TruncationKnob, value_N: Tensor, rows: list[int]) -> None:
        kind, shown_NW = sees(knob), self.top_NM
        if kind == "row" and not self.is_whole:
            self.unknown.update(rows)
            return
        if kind != "prefix":
            self._close()
            if not self.is_whole:  # where a row is cut beyond the top already, nobody can show what is left of it
                self.unknown.update(n for n in rows if self.M < self.kept[n] < UNCUT)
            shown_NW = self._shown(rows)
        own = knob.kept(torch.from_numpy(shown_NW), value_N).tolist()
        for n in rows:
            self.kept[n] = min(self.kept[n], int(own[n]))
        self.is_closed = False

    def _shown(self, rows: list[int]) -> Any:
        """What is left of each row, as far as it is in the top, and the mass of the rest of rows that nothing cuts yet."""
        left_NM = self.top_NM
        if min(self.kept) < self.M:
            left_NM = left_NM.copy()
            for n, kept in enumerate(self.kept):
                left_NM[n, kept:] = -np.inf
        uncut = [] if self.is_whole else [n for n in rows if self.kept[n] == UNCUT]
        if not uncut:
            return left_NM
        rest_N1 = np.full((self.N, 1), -np.inf, left_NM.dtype)
        rest_N1[uncut, 0] = self._rest(uncut)
        return np.concatenate([left_NM, rest_N1], 1)

    def _rest(self, rows: list[int]) -> list[float]:
        """The log of the mass of the tokens beyond the top, as a logit."""
        logits_RV = self.logits_NV if len(rows) == self.N else self.logits_NV[rows]
        temperature_R = np.ones(self.N, self.top_NM.dtype) if self.temperature_N is None else self.temperature_N
        log_masses = row_log_masses(logits_RV, torch.from_numpy(temperature_R[rows])).tolist()
        rests = [math.exp(log_mass) - self._mass(n)[-1] for n, log_mass in zip(rows, log_masses, strict=True)]
        return [math.log(rest) + self.top_NM[n, 0] if rest > 0 else -math.inf for n, rest in zip(rows, rests, strict=True)]

    def _close(self) -> None:
        """Adds the ties of the last kept token; M + 1 where they may reach beyond the top."""
        if self.is_closed:
            return
        for n, kept in enumerate(self.kept):
            if kept != UNCUT:
                self.kept[n] = _with_ties(self.top_NM[n], kept, self.is_whole)
        self.is_closed = True


def _with_ties(top_M: Any, kept: int, is_whole: bool) -> int:
    """What `Scaled.close` does, for one row."""
    M = len(top_M)
    end = kept = min(max(kept, 1), M)
    last = top_M[kept - 1]
    while end < M and top_M[end] == last:
        end += 1
    return end if is_whole or end < M else M + 1
