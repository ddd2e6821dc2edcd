"""How far each row is cut by knob values of its own, read off its best tokens instead of a sorted row.

A step of decoding is little arithmetic and many operations, whose start-up is its cost. So the host does it, whatever device
the rows are on: it reads the values first, keeps the state of a row in Python's own numbers, and leaves arrays
to numpy, which starts several times faster than torch. Only whole rows stay on their device.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentknobs.knobs.knob import TINY, DecodingKnob, ScalingKnob, TruncationKnob, extend_over_ties
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.best import TOP, Best, best_tokens, top_by_key
from latentknobs.likelihood.rows import HUGE, check_distributions, checked, own_masses, wide
from latentknobs.tensors import host_sees

NO_CUTOFF = 1 << 30  # cutoff of rows that no knob cuts


class Cut:
    """N rows on their way through a chain of order-preserving knobs with values of their own, and their cutoffs.

    Args:
        logits_NV: of any floating dtype and device.
        value_NJ: a value per row and knob.
        u_N: uniforms, for callers that will draw.

    Attributes:
        logits_NV: the rows, wide and without huge logits.
        best: the M best tokens of each row; top_NM: numpy; their logits over the temperature.
        kept: how many are kept in each row: more than M for a cutoff somewhere beyond, NO_CUTOFF where no knob cuts.
        undetermined: rows whose cutoff the best tokens do not determine; greedy: rows in which the first argmax alone is kept.
        temperature_N: numpy; what the logits were divided by (1 in greedy rows); None: nothing was divided.
        is_whole: whether the best tokens are all there are.

    Raises:
        LogitsError: a row is not a distribution.
    """

    def __init__(self, logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, u_N: Tensor | None = None) -> None:
        self.greedy: set[int] = set()
        self._stage, self._totals_SN = 0, None  # how many scaling knobs have acted; see `_fetch`
        if host_sees(logits_NV):
            self.u_N: Any = None if u_N is None else u_N.numpy()
            steps = self._steps(space, np.ascontiguousarray(value_NJ.numpy().T))
            raw_NV = wide(logits_NV)
            self.logits_NV, self.best = raw_NV, best_tokens(raw_NV, TOP, self.greedy)
            if not all(-HUGE <= best <= HUGE for best in self.best.value_NM[:, 0].tolist()):
                self.logits_NV = checked(raw_NV)
                self.best = best_tokens(self.logits_NV, TOP)
        else:
            self.logits_NV = checked(logits_NV)
            steps = self._steps(space, self._fetch(space, value_NJ, u_N))
        self.top_NM = self.best.value_NM
        self.N, self.M = self.top_NM.shape
        self.is_whole = logits_NV.shape[1] == self.M
        self.kept: list[int] = [NO_CUTOFF] * self.N
        self.undetermined: set[int] = set()
        self.temperature_N: Any = None
        for knob, value_N, rows, divisor_N in steps:
            if divisor_N is not None:
                self._scale(divisor_N)
            elif isinstance(knob, TruncationKnob):
                self._truncate(knob, value_N, [n for n in rows if n not in self.greedy])
            self._stage += isinstance(knob, ScalingKnob)
        for n in self.greedy:
            self.kept[n] = 1

    @property
    def beyond_top(self) -> list[int]:
        """Rows that are cut, or may be, somewhere beyond their best tokens."""
        return [n for n, kept in enumerate(self.kept) if self.M < kept < NO_CUTOFF or n in self.undetermined]

    def draw(self, u_N: Sequence[float]) -> tuple[list[int], dict[int, float]]:
        """A token of each row by inverse CDF over the kept ones, over all tokens where it is not cut among its best.

        Also, for rows whose token is not among the best (ignore its id), the uniform that is left for the rest.
        """
        tokens, rest = [], {}
        width = self.M if self.undetermined else max((min(kept, self.M) for kept in self.kept), default=1)
        mass_NW = np.exp(self.top_NM[:, :width] - self.top_NM[:, :1]).astype(np.float64).cumsum(-1)
        for n, (u, kept) in enumerate(zip(u_N, self.kept, strict=True)):
            if n in self.greedy:
                tokens.append(self.best.token(n, 0))
                continue
            mass_W = mass_NW[n]
            is_more = not self.is_whole and (kept > self.M or n in self.undetermined) and self.top_NM[n, -1] > -np.inf
            head = mass_W[-1 if is_more else min(kept, self.M) - 1]
            total = max(self._total(n), head) if is_more else head
            place = int(mass_W.searchsorted(u * total, "right"))  # u < 1: never beyond the last one of what is drawn from
            if place >= self.M and is_more:
                rest[n] = min(max((u * total - head) / (total - head), 0.0), 1.0)
            tokens.append(self.best.token(n, min(place, self.M - 1)))
        return tokens, rest

    def scaled(self, rows: Sequence[int]) -> Tensor:
        """(R, V) whole rows over their temperatures, a copy."""
        logits_RV = self.logits_NV[rows]
        if self.temperature_N is None:
            return logits_RV
        return logits_RV.div_(torch.from_numpy(self.temperature_N[rows]).unsqueeze(-1).to(logits_RV))

    def _fetch(self, space: KnobSpace, value_NJ: Tensor, u_N: Tensor | None) -> Any:
        """(J, N) values. All that the host needs of rows on a GPU comes in one transfer, whole-row masses at each stage included:
        the temperatures after 0, 1, 2, ... of the scaling knobs."""
        value_NM, token_NM = top_by_key(self.logits_NV, TOP)
        temperature_N = torch.ones_like(value_NM[:, 0])
        row_N = torch.arange(len(value_NM), device=value_NM.device)
        totals = [own_masses(self.logits_NV, row_N, None)]
        for knob, value_N in zip(space.knobs, value_NJ.unbind(-1), strict=True):
            if isinstance(knob, ScalingKnob):
                divisor_N = torch.where(value_N == knob.neutral, 1.0, knob.divisor(value_N))
                temperature_N = temperature_N * divisor_N.masked_fill(divisor_N == 0, 1.0)
                totals.append(own_masses(self.logits_NV, row_N, temperature_N))
        sizes = [value_NM.shape[1], value_NM.shape[1], value_NJ.shape[1], len(totals), 1]
        parts = [value_NM, token_NM, value_NJ, torch.stack(totals, -1), (row_N if u_N is None else u_N).unsqueeze(-1)]
        fetched = torch.cat([part.double() for part in parts], -1).cpu().split(sizes, -1)
        top_NM, token_NM, value_NJ, totals_NS, u_N1 = (part.contiguous() for part in fetched)
        check_distributions(top_NM[:, 0])
        self.best = Best.of(top_NM.to(value_NM.dtype).numpy(), token_NM.long().numpy())
        self._totals_SN, self.u_N = totals_NS.T.numpy(), u_N1[:, 0].numpy()
        return value_NJ.to(value_NM.dtype).T.contiguous().numpy()

    def _steps(self, space: KnobSpace, value_JN: Any) -> list[tuple[DecodingKnob, Any, list[int], Any]]:
        """For each knob that acts: its values, the rows in which it acts, and what it divides by; greedy rows are noted."""
        steps = []
        for knob, value_N in zip(space.knobs, value_JN, strict=True):
            neutral, divisor_N = float(value_N.dtype.type(knob.neutral)), None
            rows = [n for n, value in enumerate(value_N.tolist()) if value != neutral]
            if rows and isinstance(knob, ScalingKnob):
                divisors = [1.0] * len(value_N)
                temperatures = knob.temperature(torch.from_numpy(value_N)).tolist()
                for n in rows:
                    if temperatures[n] < TINY:  # as in `divisor`
                        self.greedy.add(n)
                    else:
                        divisors[n] = temperatures[n]
                divisor_N = np.array(divisors, value_N.dtype)
            steps.append((knob, value_N, rows, divisor_N))
        return steps

    @np.errstate(over="ignore")  # of logits far below the best one, to -inf
    def _scale(self, divisor_N: Any) -> None:
        self.top_NM = self.top_NM / divisor_N[:, None]
        self.temperature_N = divisor_N if self.temperature_N is None else self.temperature_N * divisor_N

    def _truncate(self, knob: TruncationKnob, value_N: Any, rows: list[int]) -> None:
        if not rows:
            return
        if knob.sees == "row" and not self.is_whole:
            self.undetermined.update(rows)
            return
        width = self.M if knob.sees == "row" else max(min(self.kept[n], self.M) for n in rows)  # all rows are cut before it
        shown_NW = self.top_NM[:, :width]
        if knob.sees != "prefix":
            if not self.is_whole:  # what is left of a row that is cut beyond its best tokens is not known
                self.undetermined.update(n for n in rows if self.M < self.kept[n] < NO_CUTOFF)
            shown_NW = self._shown(rows, width)
        own = knob.kept(torch.from_numpy(shown_NW), torch.from_numpy(value_N)).tolist()
        for n in rows:
            if own[n] < self.kept[n]:
                self.kept[n] = min(self.kept[n], self._extended(n, own[n]))

    def _shown(self, rows: list[int], width: int) -> Any:
        """What is left of each row, as far as it is in the top, and the mass of the rest of rows that no knob has cut yet."""
        left_NW = self.top_NM[:, :width]
        if min(self.kept) < width:
            left_NW = left_NW.copy()
            for n, kept in enumerate(self.kept):
                left_NW[n, kept:] = -np.inf
        uncut = [] if self.is_whole else [n for n in rows if self.kept[n] == NO_CUTOFF]
        if not uncut:
            return left_NW
        rest_N1 = np.full((self.N, 1), -np.inf, left_NW.dtype)
        rest_N1[uncut, 0] = [self._rest(n) for n in uncut]
        return np.concatenate([left_NW, rest_N1], 1)

    def _rest(self, n: int) -> float:
        """The log of the mass of the tokens beyond the top of a row, as a logit; -inf where it is lost in rounding."""
        top_M, beyond = self.top_NM[n], self.logits_NV.shape[1] - self.M
        if beyond * math.exp(top_M[-1] - top_M[0]) < np.finfo(top_M.dtype).eps / 16:
            return -math.inf
        rest = self._total(n) - np.exp(top_M - top_M[0]).sum(dtype=np.float64)
        return math.log(rest) + top_M[0] if rest > 0 else -math.inf

    def _total(self, n: int) -> float:
        """The mass of a whole row relative to its best token."""
        if self._totals_SN is not None:
            return float(self._totals_SN[self._stage, n])
        scaled_V = self.logits_NV[n] if self.temperature_N is None else self.logits_NV[n] / float(self.temperature_N[n])
        return 1 / torch.softmax(scaled_V, -1).amax().item()

    def _extended(self, n: int, kept: int) -> int:
        """A cutoff of row n with the tokens that tie with its last one; M + 1 where they may reach beyond the top."""
        kept = min(max(kept, 1), self.M)
        if kept < self.M and self.top_NM[n, kept - 1] == self.top_NM[n, kept]:
            kept = int(extend_over_ties(torch.from_numpy(self.top_NM[n : n + 1]), torch.tensor([[kept]])))
        return kept if self.is_whole or kept < self.M else self.M + 1
