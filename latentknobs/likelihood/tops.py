"""The best tokens of rows at several temperatures, and how many of them a truncation knob keeps.

A knob is asked for many counts in one call, and shown few tokens at first: 16 columns, then four times as many for the counts
that reached the end of those. That changes no count: see `TruncationKnob.sees`.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from latentknobs.knobs.knob import TruncationKnob
from latentknobs.likelihood.plan import Scale
from latentknobs.likelihood.prefix import Key, sees
from latentknobs.tensors import host_sees

FIRST = 16  # columns that a knob is shown at first
STACK = 1 << 16  # elements shown in one call: a quarter of a MiB of float32, whatever is asked


@dataclass(frozen=True)
class Tops:
    """The M best tokens of R rows at Q temperature chains.

    Attributes:
        top_QRM: descending logits, divided by the temperatures.
        whole: whether these are all tokens of the row.
        keys: the Q temperature chains.
        mass_of: (R,) log sum exp(z - max) of the whole row, for the chains where somebody needs it; not read if `whole`.
    """

    top_QRM: Tensor
    whole: bool
    keys: tuple[Key, ...]
    mass_of: dict[Key, Tensor]

    def divided(self, step: Scale) -> "Tops":
        """The same rows after a scaling knob: divided as often as the chain divides, so that rounding agrees with `apply`."""
        before_QRM = self.top_QRM if self.top_QRM.shape[0] == 1 else self.top_QRM[step.from_Q]
        return Tops(before_QRM / step.divisor_Q.to(before_QRM).view(-1, 1, 1), self.whole, step.keys, self.mass_of)

    @cached_property
    def mass_QRW(self) -> Tensor:
        """(Q, R, M + 1) mass of the 1, 2, ... best tokens relative to the best one; the last column is that of the whole row."""
        Q, R, M = self.top_QRM.shape
        gap_QRW = self.top_QRM.new_zeros(Q, R, M + 1)
        torch.sub(self.top_QRM, self.top_QRM[..., :1], out=gap_QRW[..., :M])
        mass_QRW = gap_QRW.exp_().cumsum(-1)  # summed in float64 on a CPU
        if self.whole:
            mass_QRW[..., M] = mass_QRW[..., M - 1]
        else:
            for q, key in enumerate(self.keys):
                if key in self.mass_of:
                    mass_QRW[q, :, M] = self.mass_of[key].exp()
        return mass_QRW

    @cached_property
    def _head(self) -> Tensor:
        """(Q * R, FIRST) the best of the best."""
        return self.top_QRM[..., :FIRST].reshape(-1, min(FIRST, self.top_QRM.shape[-1]))

    def counts(self, knob: TruncationKnob, row_X: Tensor, cut_X: Tensor | None, of_C: Tensor, value_C: Tensor) -> Tensor:
        """How many tokens a knob keeps, ties included: C counts, asked of X rows.

        Args:
            row_X: which row of the flattened (Q, R).
            cut_X: the tokens that earlier knobs left; None: all of them, or a knob that sees "prefix" and need not know.
            of_C: which of the X each count is asked of.
            value_C: the knob's value.

        Returns:
            (C,) counts; M + 1 for a cut somewhere beyond the top.
        """
        M = self.top_QRM.shape[-1]
        count_C = of_C
        left: Tensor | None = None  # which counts are still open; None: all
        for width in self._widths(sees(knob)):
            of_c, value_c = of_C, value_C
            if left is not None:
                of_c, value_c = of_C.index_select(0, left), value_C.index_select(0, left)
            made_c = self._asked(knob, width, row_X, cut_X, of_c, value_c)
            count_C = made_c if left is None else count_C.index_copy_(0, left, made_c)
            if width == M:
                break
            is_open_c = made_c >= width
            if cut_X is not None:
                is_open_c.logical_and_((cut_X >= width).index_select(0, of_c))
            open_c = is_open_c.nonzero().squeeze(-1)
            left = open_c if left is None else left.index_select(0, open_c)
            if not len(left):
                break
        return self._closed(row_X.index_select(0, of_C), count_C)

    def _widths(self, kind: str) -> list[int]:
        """How many columns to show: all at once to a knob that sees the row, and on a GPU, where to look again is to wait."""
        M = self.top_QRM.shape[-1]
        widths = [M]
        if kind != "row" and host_sees(self.top_QRM):
            width = FIRST
            while width < M:
                widths.insert(-1, width)
                width *= 4
        return widths

    def _asked(
        self, knob: TruncationKnob, width: int, row_X: Tensor, cut_X: Tensor | None, of_C: Tensor, value_C: Tensor
    ) -> Tensor:
        """(C,) the knob's own counts, at least `width` where it does not tell by the first `width` columns."""
        kind, size = sees(knob), max(1, STACK // width)
        shown_XW = self._shown(kind, width, row_X, cut_X) if width == FIRST else None  # few columns: made once for all values
        parts = []
        for cells in (slice(i, i + size) for i in range(0, len(of_C), size)):
            of_c = of_C[cells]
            if shown_XW is None:
                cut_c = None if cut_X is None else cut_X.index_select(0, of_c)
                shown_cW = self._shown(kind, width, row_X.index_select(0, of_c), cut_c)
            else:
                shown_cW = shown_XW.index_select(0, of_c)
            parts.append(knob.kept(shown_cW, value_C[cells]).clamp(max=width).int())
        return torch.cat(parts) if parts else torch.empty_like(of_C)

    def _shown(self, kind: str, width: int, row_C: Tensor, cut_C: Tensor | None) -> Tensor:
        """(C, width) what a knob is shown of rows; whatever follows is one last column for a knob that sees "mass"."""
        M = self.top_QRM.shape[-1]
        head_XW = self._head if width == FIRST else self.top_QRM.view(-1, M)[:, :width]
        shown_CW = head_XW.index_select(0, row_C)
        if kind == "prefix":
            return shown_CW
        if cut_C is not None and width == FIRST:
            shown_CW += _gone(width, shown_CW.dtype, shown_CW.device).index_select(0, cut_C.clamp(1, width))
        elif cut_C is not None:
            shown_CW.masked_fill_(torch.arange(width, device=row_C.device) >= cut_C.clamp(min=1).unsqueeze(-1), -torch.inf)
        if kind == "mass" and not (self.whole and width == M):
            mass_X, first_C = self.mass_QRW.view(-1), row_C * (M + 1)
            last_C = first_C + (M if cut_C is None else cut_C.clamp(1, M + 1).sub_(1))
            rest_C = mass_X.index_select(0, last_C)
            if width > 1:
                rest_C.sub_(mass_X.index_select(0, first_C.add_(width - 2)))
            best_C = self.top_QRM[..., 0].reshape(-1).index_select(0, row_C)
            shown_CW[:, -1] = rest_C.clamp_(min=0).log_().add_(best_C)
        return shown_CW

    def _closed(self, row_C: Tensor, count_C: Tensor) -> Tensor:
        """Counts with the ties of the last kept token; M + 1 where they may reach beyond the top."""
        M = self.top_QRM.shape[-1]
        top_X, count_C = self.top_QRM.view(-1), count_C.clamp_(1, M)
        last_C = (row_C * M).add_(count_C).sub_(1)
        next_C = (last_C + 1).clamp_(max=len(top_X) - 1)
        is_tied_C = (top_X.index_select(0, last_C) == top_X.index_select(0, next_C)).logical_and_(count_C < M)
        if len(tied := is_tied_C.nonzero().squeeze(-1)):
            row_t, inverse_t = row_C.index_select(0, tied).unique(return_inverse=True)
            end_X = ends(self.top_QRM.view(-1, M).index_select(0, row_t)).view(-1)
            count_C.index_copy_(0, tied, end_X[inverse_t * M + count_C[tied] - 1].int())
        return count_C if self.whole else count_C.add_(count_C == M)


@lru_cache(maxsize=8)
def _gone(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(width + 1, width) what to add to the first logits of a row that has been cut to 0, 1, ... tokens."""
    return torch.full((width + 1, width), -torch.inf, dtype=dtype, device=device).triu()


def ends(sorted_NM: Tensor) -> Tensor:
    """(N, M) for each place in a descending row, the count of tokens up to the end of the run of equal ones that it is in."""
    M = sorted_NM.shape[1]
    end_NM = torch.arange(1, M + 1, device=sorted_NM.device).repeat(len(sorted_NM), 1)
    end_NM[:, :-1].masked_fill_(sorted_NM[:, 1:] == sorted_NM[:, :-1], M)
    return end_NM.flip(-1).cummin(-1).values.flip(-1)
