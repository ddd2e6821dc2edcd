"""How far each row is cut by knob values of its own, read off its best tokens instead of a sorted row.

A sampling step is little arithmetic and many operations, whose start-up is its cost. So a host that can see the values asks
them which operations are needed; on a GPU, where asking would be waiting, all are done, to be replayed as one graph.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentknobs.knob import ScalingKnob, TruncationKnob
from latentknobs.likelihood.masses import row_log_masses
from latentknobs.likelihood.prefix import UNCUT, Scaled, sees
from latentknobs.likelihood.rows import host_sees
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
    def is_any_open(self) -> Tensor | bool:
        """() whether some row is open."""
        if self.scaled.whole:
            return False
        if host_sees(self.kept_N) and self.is_unknown_N is None:
            return max(self.kept_N.tolist(), default=0) > self.token_NM.shape[1]
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


def cut_rows(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, kernels: bool = False) -> Cut:
    """How far each row is cut by its own knob values, read off its best tokens; order-preserving knobs only.

    Args:
        kernels: read the rows with Triton kernels (see `sorting.kernels_for`).
    """
    top_NM, token_NM = top_tokens(logits_NV, TOP, kernels)
    cutting = _Cutting(logits_NV, Scaled(top_NM, top_NM.shape[1] == logits_NV.shape[1], None), kernels)
    listed_JN = value_NJ.T.tolist() if cutting.is_seen else None
    for j, (knob, value_N) in enumerate(zip(space.knobs, value_NJ.unbind(-1), strict=True)):
        neutral, is_neutral_N = _rounded(knob.neutral, value_NJ.dtype), None
        if listed_JN is None:
            is_neutral_N = value_N == neutral
        elif neutral in listed_JN[j]:
            if all(value == neutral for value in listed_JN[j]):
                continue
            is_neutral_N = value_N.numpy() == neutral
        if isinstance(knob, ScalingKnob):
            cutting.scale(knob, value_N, is_neutral_N)
        else:
            assert isinstance(knob, TruncationKnob)
            cutting.truncate(knob, value_N, is_neutral_N)
    return cutting.result(token_NM)


class _Cutting:
    """N rows on their way through a chain of knobs.

    Counts and masks, (N,), are numpy's where the host sees them, since numpy starts several times faster, else torch's.
    Counts are closed (completed by the ties of the last kept token) only when somebody reads them: closing the smaller of two
    counts is taking the smaller of the two closed ones.
    """

    def __init__(self, logits_NV: Tensor, scaled: Scaled, kernels: bool) -> None:
        self.logits_NV, self.scaled, self.kernels = logits_NV, scaled, kernels
        self.is_seen = host_sees(logits_NV)
        self.np: Any = np if self.is_seen else torch
        self.kept_N: Any = None  # nothing has cut any row yet
        self.is_closed = True
        self.cuts_all = False  # whether something is known to have cut every row
        self.temperature_N: Tensor | None = None
        self.is_greedy_N: Any = None
        self.is_unknown_N: Any = None

    def seen(self, part_N: Tensor) -> Any:
        return part_N.numpy() if self.is_seen else part_N

    def back(self, part_N: Any) -> Any:
        return torch.from_numpy(part_N) if isinstance(part_N, np.ndarray) else part_N

    def scale(self, knob: ScalingKnob, value_N: Tensor, is_neutral_N: Any) -> None:
        divisor_N = knob.temperature(value_N)
        if is_neutral_N is not None:
            divisor_N = divisor_N.masked_fill(self.back(is_neutral_N), 1.0)
        if not self.is_seen or 0.0 in divisor_N.tolist():
            is_greedy_N = self.seen(divisor_N) == 0
            divisor_N = divisor_N.masked_fill(self.back(is_greedy_N), 1.0)
            self.is_greedy_N = _either(self.is_greedy_N, is_greedy_N)
        self.close()  # ties may come apart, or arise, in rounding
        self.scaled = Scaled(self.scaled.top_RM / divisor_N.unsqueeze(-1), self.scaled.whole, None)
        self.temperature_N = divisor_N if self.temperature_N is None else self.temperature_N * divisor_N

    def truncate(self, knob: TruncationKnob, value_N: Tensor, is_neutral_N: Any) -> None:
        kind = sees(knob)
        if kind == "row" and not self.scaled.whole:
            acts_N = self.seen(torch.ones_like(value_N, dtype=torch.bool)) if is_neutral_N is None else ~is_neutral_N
            self.is_unknown_N = _either(self.is_unknown_N, acts_N)
            return
        if kind != "prefix":
            self.close()
            self._doubt(is_neutral_N)
        own_N = self.seen(knob.kept(self.scaled.top_RM if kind == "prefix" else self._shown(is_neutral_N), value_N).long())
        if is_neutral_N is not None:
            own_N = self.np.where(is_neutral_N, UNCUT, own_N)
        self.kept_N = own_N if self.kept_N is None else self.np.minimum(self.kept_N, own_N)
        self.is_closed, self.cuts_all = False, self.cuts_all or is_neutral_N is None

    def _doubt(self, is_neutral_N: Any) -> None:
        """Where a row is cut beyond the top already, nobody can show what is left of it."""
        if self.kept_N is None or self.scaled.whole:
            return
        M = self.scaled.top_RM.shape[1]
        if self.is_seen and not any(M < kept < UNCUT for kept in self.kept_N.tolist()):
            return
        is_beyond_N = (self.kept_N > M) & (self.kept_N < UNCUT)
        if is_neutral_N is not None:
            is_beyond_N = is_beyond_N & ~is_neutral_N
        self.is_unknown_N = _either(self.is_unknown_N, is_beyond_N)

    def _shown(self, is_neutral_N: Any) -> Tensor:
        """What is left of each row, as far as it is in the top, and the mass of the rest of rows that nothing cuts yet."""
        left_NM, kept_N, is_whole_N = self.scaled.top_RM, self.kept_N, None
        if kept_N is not None:
            is_gone_NM = self._places() >= kept_N[:, None]
            left_NM = left_NM.masked_fill(self.back(is_gone_NM), -torch.inf)
            is_whole_N = kept_N == UNCUT
        if self.scaled.whole or self.cuts_all:
            return left_NM
        if is_neutral_N is not None:
            is_whole_N = ~is_neutral_N if is_whole_N is None else is_whole_N & ~is_neutral_N
        if is_whole_N is None or not self.is_seen:
            rest_N = self._rest(slice(None))
            rest_N = rest_N if is_whole_N is None else rest_N.masked_fill(~is_whole_N, -torch.inf)
        elif is_whole_N.any():
            rows = torch.from_numpy(is_whole_N.nonzero()[0])
            rest_N = torch.full_like(left_NM[:, 0], -torch.inf).index_copy_(0, rows, self._rest(rows))
        else:
            return left_NM
        return torch.cat([left_NM, rest_N.unsqueeze(-1)], -1)

    def _rest(self, rows: Tensor | slice) -> Tensor:
        """(R,) log of the mass of the tokens beyond the top, as a logit."""
        scaled = self.scaled if isinstance(rows, slice) else Scaled(self.scaled.top_RM[rows], False, None)
        temperature_R = torch.ones_like(scaled.top_RM[:, 0]) if self.temperature_N is None else self.temperature_N[rows]
        mass_R = row_log_masses(self.logits_NV[rows], temperature_R, self.kernels)
        rest_R = (mass_R.double().exp() - scaled.mass_RM[:, -1]).clamp(min=0).log()
        return rest_R.to(scaled.top_RM.dtype) + scaled.top_RM[:, 0]

    def _places(self) -> Any:
        top_NM = self.scaled.top_RM
        return np.arange(top_NM.shape[1]) if self.is_seen else torch.arange(top_NM.shape[1], device=top_NM.device)

    def close(self) -> None:
        """Adds the ties of the last kept token; M + 1 where they may reach beyond the top."""
        if self.is_closed:
            return
        if self.is_seen:
            top_NM, whole = self.scaled.top_RM.numpy(), self.scaled.whole
            self.kept_N = np.array(
                [_with_ties(*both, whole) for both in zip(top_NM, self.kept_N.tolist(), strict=True)], np.int64
            )
        else:
            self.kept_N = torch.where(self.kept_N < UNCUT, self.scaled.close(self.kept_N.unsqueeze(-1)).squeeze(-1), self.kept_N)
        self.is_closed = True

    def result(self, token_NM: Tensor) -> Cut:
        self.close()
        kept_N, is_unknown_N, temperature_N = self.kept_N, self.is_unknown_N, self.temperature_N
        if kept_N is None:
            kept_N = self.seen(torch.full_like(token_NM[:, 0], UNCUT))
        if temperature_N is None:
            temperature_N = torch.ones_like(self.scaled.top_RM[:, 0])
        if self.is_greedy_N is not None:
            kept_N = self.np.where(self.is_greedy_N, 1, kept_N)
            is_unknown_N = None if is_unknown_N is None else is_unknown_N & ~self.is_greedy_N
        parts = (self.back(part_N) for part_N in (kept_N, temperature_N, is_unknown_N, self.is_greedy_N))
        return Cut(self.scaled, token_NM, *parts)


def _with_ties(top_M: Any, kept: int, whole: bool) -> int:
    """What `Scaled.close` does, for one row."""
    if kept == UNCUT:
        return kept
    M = len(top_M)
    end = kept = min(max(kept, 1), M)
    while end < M and top_M[end] == top_M[kept - 1]:
        end += 1
    return end if whole or end < M else M + 1


def _either(one_N: Any, other_N: Any) -> Any:
    return other_N if one_N is None else one_N | other_N


def _rounded(value: float, dtype: torch.dtype) -> float:
    """A number as a tensor holds it."""
    return float(np.float32(value)) if dtype == torch.float32 else float(value)
