"""How far each row is cut by knob values of its own, on the host: the quick twin of `cut`, which works for any device.

A sampling step is little arithmetic and many operations, whose start-up is its cost. Here the host looks at the values before
it works, keeps what is known of a row in Python's own numbers, and leaves arrays to numpy, which starts several times faster
than torch: a knob may say its `kept` in numpy too. What it does not, and the mass of whole rows, is torch's.
"""

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentknobs.knobs.knob import DecodingKnob, ScalingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.prefix import UNCUT, sees
from latentknobs.likelihood.sorting import best_by_bound

_QUIETLY = np.errstate(invalid="ignore")  # rows of NaN, or without any token left: what models make of padding


class HostCut:
    """N rows on their way through a chain of order-preserving knobs with values of their own, and what became of them.

    Args:
        best: how many tokens are the best of a row.
        lists_greedy: whether they are wanted in greedy rows too, of which the first argmax says all.

    Attributes:
        best: the best M tokens of each row; top_NM: numpy; their logits over the temperature.
        kept: how many are kept in each row: more than M for a cut somewhere beyond, UNCUT where nothing cuts.
        unknown: rows whose cut the top does not tell; greedy: rows in which the first argmax alone is kept.
        temperature_N: numpy; what the logits were divided by (1 in greedy rows).
        is_whole: whether the top is all there is.

    Counts are closed (completed by the ties of the last kept token) only when somebody reads them: closing the smaller of two
    counts is taking the smaller of the two closed ones.
    """

    @_QUIETLY
    def __init__(self, logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, best: int, lists_greedy: bool = False) -> None:
        self.logits_NV, self.dtype = logits_NV, torch.promote_types(logits_NV.dtype, torch.float32)
        self.greedy: set[int] = set()
        steps: list[tuple[DecodingKnob, Any, list[int], Any]] = []
        for knob, value_N in zip(space.knobs, np.ascontiguousarray(value_NJ.numpy().T), strict=True):
            neutral = _held(knob.neutral, value_NJ.dtype)
            if rows := [n for n, value in enumerate(value_N.tolist()) if value != neutral]:  # in which it is not neutral
                steps.append((knob, value_N, rows, self._divisors(knob, value_N, rows)))
        self.best = best_by_bound(logits_NV, best, () if lists_greedy else self.greedy)
        self.top_NM = self.best.value_NM
        self.N, self.M = self.top_NM.shape
        self.is_whole = logits_NV.shape[1] == self.M
        self.kept: list[int] = [UNCUT] * self.N
        self.is_closed = True
        self.unknown: set[int] = set()
        self._settled: set[int] = set()
        self.temperature_N: Any = None
        for knob, value_N, rows, divisor_N in steps:
            if divisor_N is not None:
                self._scale(divisor_N)
            elif isinstance(knob, TruncationKnob):
                self._truncate(knob, value_N, [n for n in rows if n not in self.greedy])
        self._close()
        for n in self.greedy:
            self.kept[n] = 1
        self.unknown -= self.greedy

    @property
    def is_any_open(self) -> bool:
        """Whether some row is open."""
        return not self.is_whole and (bool(self.unknown) or max(self.kept, default=0) > self.M)

    @property
    def open_rows(self) -> list[int]:
        """Rows that are not cut, or not known to be cut, inside the top, and that no draw has settled."""
        if not self.is_any_open:
            return []
        return [n for n, kept in enumerate(self.kept) if (kept > self.M or n in self.unknown) and n not in self._settled]

    @cached_property
    @_QUIETLY
    def mass_NM(self) -> Any:
        """(N, M) float64 cumulative mass of the best tokens relative to the first."""
        weight_NM = np.exp(self.top_NM - self.top_NM[:, :1])
        return weight_NM.astype(np.float64).cumsum(-1)  # in one call it would take twice as long

    def draw(self, u_N: Sequence[float]) -> list[int]:
        """A token of each row by inverse CDF over the kept ones.

        A row that is cut beyond the top, if at all, draws from all tokens; among the best of them every such cut keeps its draw,
        which settles the row. Tokens of rows that stay open mean nothing.
        """
        tokens = []
        for n, (u, kept) in enumerate(zip(u_N, self.kept, strict=True)):
            if n in self.greedy:
                tokens.append(self.best.token(n, 0))
                continue
            mass_M, is_beyond = self.mass_NM[n], kept > self.M and not self.is_whole
            if is_beyond and n in self.unknown:
                tokens.append(0)
                continue
            total = self._total(n) if is_beyond else mass_M[min(kept, self.M) - 1]
            place = int(mass_M.searchsorted(u * total, "right"))  # u < 1: never beyond the last one kept
            if is_beyond and place < self.M:
                self._settled.add(n)
            tokens.append(self.best.token(n, min(place, self.M - 1)))
        return tokens

    def _divisors(self, knob: DecodingKnob, value_N: Any, rows: list[int]) -> Any:
        """(N,) what a scaling knob divides by, greedy rows noted and left alone; None where it does nothing."""
        if not isinstance(knob, ScalingKnob):
            return None
        told, divisors = knob.temperature(torch.from_numpy(value_N)).tolist(), [1.0] * len(value_N)
        for n in rows:
            if told[n] == 0:
                self.greedy.add(n)
            else:
                divisors[n] = told[n]
        return np.array(divisors, value_N.dtype)

    def _scale(self, divisor_N: Any) -> None:
        self._close()  # ties may come apart, or arise, in rounding
        self.top_NM = self.top_NM / divisor_N[:, None]
        self.temperature_N = divisor_N if self.temperature_N is None else self.temperature_N * divisor_N
        self.__dict__.pop("mass_NM", None)

    def _truncate(self, knob: TruncationKnob, value_N: Any, rows: list[int]) -> None:
        if not rows:
            return
        kind, shown_NW = sees(knob), self.top_NM
        if kind == "row" and not self.is_whole:
            self.unknown.update(rows)
            return
        if kind != "prefix":
            self._close()
            if not self.is_whole:  # where a row is cut beyond the top already, nobody can show what is left of it
                self.unknown.update(n for n in rows if self.M < self.kept[n] < UNCUT)
            shown_NW = self._shown(rows)
        own = knob.kept_on_host(shown_NW, value_N).tolist()
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
        rest_N1[uncut, 0] = [self._rest(n) for n in uncut]
        return np.concatenate([left_NM, rest_N1], 1)

    def _rest(self, n: int) -> float:
        """The log of the mass of the tokens beyond the top of a row, as a logit."""
        top_M, beyond = self.top_NM[n], self.logits_NV.shape[1] - self.M
        most = beyond * math.exp(top_M[-1] - top_M[0])
        is_lost = most < np.finfo(top_M.dtype).eps / 16  # in the rounding of the mass of the top
        rest = most if is_lost else self._total(n) - self.mass_NM[n, -1]
        return math.log(rest) + top_M[0] if rest > 0 else -math.inf

    def _total(self, n: int) -> float:
        """The mass of a whole row relative to its best token."""
        temperature = 1.0 if self.temperature_N is None else float(self.temperature_N[n])
        return 1 / torch.softmax(self.logits_NV[n].to(self.dtype) / temperature, -1).max().item()

    def _close(self) -> None:
        """Adds the ties of the last kept token; M + 1 where they may reach beyond the top."""
        if self.is_closed:
            return
        for n, kept in enumerate(self.kept):
            if kept != UNCUT:
                self.kept[n] = _with_ties(self.top_NM[n], kept, self.is_whole)
        self.is_closed = True


@lru_cache(maxsize=256)
def _held(number: float, dtype: torch.dtype) -> float:
    """A number as tensors of this dtype hold it."""
    return float(torch.tensor(number, dtype=dtype))


def _with_ties(top_M: Any, kept: int, is_whole: bool) -> int:
    """What `Scaled.close` does, for one row."""
    M = len(top_M)
    end = kept = min(max(kept, 1), M)
    last = top_M[kept - 1]
    while end < M and top_M[end] == last:
        end += 1
    return end if is_whole or end < M else M + 1
