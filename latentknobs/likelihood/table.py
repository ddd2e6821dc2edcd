"""log P(y | option) of every option at once: the fast twin of `reference.option_logps`.

Scaling knobs keep the order of tokens and truncation knobs keep a prefix of it, so an option of such knobs is a temperature T
and a cutoff n:
    log P(y | option) = z_y / T - log(mass of the n best tokens at T)     if fewer than n tokens are above y, else -inf.

A table is built in four phases:
    1. read      of whole rows: the best logit, the masses at the space's temperatures; and the M best tokens in order;
    2. walk      once through the tree of distinct knob prefixes (384 options of four knobs share 6 temperatures), with one
                 query for the cutoffs of each knob, on the M best tokens only;
    3. settle    the formula above, for all cutoffs of one temperature at once;
    4. finish    cells whose cutoff the M best tokens do not determine, by 2 and 3 on the sorted row. So every cell is exact.

Knobs of other kinds are applied to whole rows, once per distinct value, and what follows them is fast again.

What a truncation knob reads beyond its own cutoff is its class variable `sees`:
    "prefix"   nothing: cutting the row first changes its count only where the count would exceed that cutoff (top-k, min-p);
    "mass"     the total mass of the tokens beyond, shown to `kept` as one last column (top-p);
    "row"      every token (the default, right for any knob): such options wait for the sorted row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor

from latentknobs.errors import LogitsError
from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ScalingKnob, TruncationKnob, extend_over_ties, is_ordered
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.best import TOP, best_values, sort_descending
from latentknobs.likelihood.rows import HUGE, check_distributions, check_shapes, checked, first_argmax, masses, shifted, wide
from latentknobs.tensors import pick

CELLS = 1 << 16  # best tokens in work at once: 256 rows of 256
DENSE = 1 << 20  # elements of whole rows in work at once
SORTED = 1 << 19  # the same of sorted rows
FIRST = 16  # best tokens that a knob is shown at first; four times as many as long as a cutoff reaches the end of those
UNDETERMINED = 0  # cutoff that the best tokens do not determine; M + 1 is one somewhere beyond them

Chain = tuple[float, ...]  # the temperatures that have divided the logits so far


@torch.no_grad()
def option_logps(logits_NV: Tensor, targets_N: Tensor, space: KnobSpace, context: Context | None = None) -> Tensor:
    """log P(target | option) of every row under every option.

    Args:
        logits_NV: (N, V) the frozen LM's logits, any floating dtype; no gradient is kept.
        targets_N: (N,) token ids.
        context: the parts that `space.needs` names; None if it is empty.

    Returns:
        (N, K) nats, float32 or wider; -inf where the option removes the target.

    Raises:
        LogitsError: a row is not a distribution, a target is not a token, or the shapes do not fit.
    """
    N, V = check_shapes(logits_NV, targets_N, "targets")
    if not logits_NV.numel():
        return wide(logits_NV).new_zeros(N, space.K)
    if bool((is_bad_N := (targets_N < 0) | (targets_N >= V)).any()):
        raise LogitsError(f"Target {int(targets_N[is_bad_N][0])} is not one of the {V} tokens of a row. Leave padding out.")
    if is_ordered(*space.knobs):
        return _ordered(logits_NV, targets_N, space)
    parts = []
    for rows in _slices(N, DENSE // V):
        part = None if context is None else context.rows(rows)
        parts.append(_dense(checked(logits_NV[rows], first_row=rows.start), targets_N[rows], space, part))
    return torch.cat(parts)


def _dense(logits_RV: Tensor, targets_R: Tensor, space: KnobSpace, context: Context | None) -> Tensor:
    """Applies knobs to whole rows until only order-preserving ones remain."""
    if not space.knobs:
        return pick(logits_RV.log_softmax(-1), targets_R).unsqueeze(-1)
    if is_ordered(*space.knobs):
        return _ordered(logits_RV, targets_R, space)
    out_RK = logits_RV.new_empty(len(logits_RV), space.K)
    knob = space.knobs[0]
    for branch in tree(space):
        rest = KnobSpace(space.knobs[1:], tuple(space.grid_KJ[k][1:] for k in branch.ks), space.order)
        value_R = torch.full_like(logits_RV[:, 0], branch.value)
        changed_RV = logits_RV if branch.is_neutral else knob.apply_in(logits_RV, value_R, context)
        out_RK[:, branch.ks] = _dense(changed_RV, targets_R, rest, context)
    return out_RK


def _slices(rows: int, size: int) -> Iterator[slice]:
    return (slice(first, first + max(size, 1)) for first in range(0, rows, max(size, 1)))


# The tree of knob prefixes


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
    """The distinct knob prefixes of a space's options."""
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
            temperature = 1.0 if is_neutral else float(knob.divisor(torch.tensor([value], dtype=torch.float64)))
            is_neutral = temperature == 1
        out.append(Branch(value, is_neutral, temperature, members, _branches(space, j + 1, members)))
    return tuple(out)


@lru_cache(maxsize=256)
def _mass_chains(space: KnobSpace) -> tuple[tuple[Chain, ...], bool]:
    """The chains of temperatures at which masses of whole rows are read, and whether any option truncates."""

    def visit(j: int, branches: tuple[Branch, ...], chain: Chain, is_cut: bool) -> Iterator[tuple[Chain | None, bool]]:
        """The chains below these branches whose masses are read, None where an option needs none; and whether it truncates."""
        for branch in branches:
            cuts = branch.temperature is None and not branch.is_neutral
            if cuts and not is_cut and space.knobs[j].sees == "mass":  # type: ignore[attr-defined]
                yield chain, True
            here = chain if branch.is_neutral or cuts else (*chain, branch.temperature or 0.0)
            if branch.temperature == 0:
                continue
            if branch.following:
                yield from visit(j + 1, branch.following, here, is_cut or cuts)
            else:
                yield None if is_cut or cuts else here, is_cut or cuts

    found = list(visit(0, tree(space), (), False))
    return tuple(dict.fromkeys(chain for chain, _ in found if chain is not None)), any(is_cut for _, is_cut in found)


# Phase 1: read


@dataclass(frozen=True)
class Rows:
    """R rows and their targets, as far as tables need them."""

    logit_R: Tensor  # the target's logit; best_R: the row's largest logit; is_first_R: whether the target is the first argmax
    best_R: Tensor
    is_first_R: Tensor
    mass_RQ: Tensor  # sum exp((z - best) / T) over the whole row for each of the space's `_mass_chains`

    def __getitem__(self, rows: slice | Tensor) -> "Rows":
        return Rows(self.logit_R[rows], self.best_R[rows], self.is_first_R[rows], self.mass_RQ[rows])


def _ordered(logits_NV: Tensor, targets_N: Tensor, space: KnobSpace) -> Tensor:
    first_N, V = first_argmax(logits_NV), logits_NV.shape[1]
    best_N = wide(pick(logits_NV, first_N))
    check_distributions(best_N)
    if bool((best_N.abs() > HUGE).any()):
        return _ordered(shifted(logits_NV, best_N), targets_N, space)
    chains, truncates = _mass_chains(space)
    mass_NQ = masses(logits_NV, best_N, [prod(chain) for chain in chains])
    rows = Rows(wide(pick(logits_NV, targets_N)), best_N, targets_N == first_N, mass_NQ)
    M = 1 if not truncates else V if V <= TOP else min(TOP, max(V // 4, 64))
    parts = []
    for here in _slices(len(logits_NV), CELLS // M):
        top_RM = best_values(logits_NV[here], M) if truncates else best_N[here].unsqueeze(-1)
        logps_RK, undetermined_RK = _Walk(space, top_RM, rows[here], is_whole=M == V).settle()
        if undetermined_RK.any():
            _finish(logits_NV[here], rows[here], space, logps_RK, undetermined_RK)
        parts.append(logps_RK)
    return torch.cat(parts)


# Phases 2 and 3: walk and settle


@dataclass
class Tops:
    """The M best tokens of R rows after one chain of temperatures."""

    chain: Chain
    top_RM: Tensor  # descending logits, divided as often as the chain divides, so that rounding agrees with `apply`
    whole_R: Tensor | None  # mass of the whole row relative to the best token; None where no option reads it
    counts: dict[tuple[int, tuple[float, ...]], Tensor] = field(default_factory=dict)
    leaves: list[tuple[list[int], Tensor | None]] = field(default_factory=list)  # options with this scaling (ks), their cutoffs

    @cached_property
    def mass_RW(self) -> Tensor:
        """(R, M + 1) mass of the 1, 2, ... best tokens relative to the best one; the last column is that of the whole row."""
        mass_RM = (self.top_RM - self.top_RM[:, :1]).exp_().cumsum(-1)  # summed in float64 on a CPU
        return torch.cat([mass_RM, mass_RM[:, -1:] if self.whole_R is None else self.whole_R.unsqueeze(-1)], -1)


class _Walk:
    """From the M best tokens of R rows to their table.

    Args:
        space: order-preserving knobs only.
        top_RM: the M largest logits, descending.
        is_whole: whether M = V.
    """

    def __init__(self, space: KnobSpace, top_RM: Tensor, rows: Rows, is_whole: bool) -> None:
        self.space, self.rows, self.is_whole, self.greedy = space, rows, is_whole, list[int]()
        self.whole_of = {} if is_whole else dict(zip(_mass_chains(space)[0], rows.mass_RQ.unbind(-1), strict=True))
        self.tops: dict[Chain, Tops] = {(): Tops((), top_RM, self.whole_of.get(()))}
        self._visit(0, tree(space), self.tops[()], None)

    def _visit(self, j: int, branches: tuple[Branch, ...], tops: Tops, cut_R: Tensor | None) -> None:
        """Goes on below one knob prefix: rows scaled to `tops` and cut to `cut_R` (None: not cut)."""
        knob = self.space.knobs[j]
        cut_RA = None
        if isinstance(knob, TruncationKnob) and (values := tuple(branch.value for branch in branches if not branch.is_neutral)):
            cut_RA = self._cutoffs(j, values, tops, cut_R)
        a = 0
        for branch in branches:
            here, cut = tops, cut_R
            if branch.temperature == 0:  # one token is left, and no knob removes the last one
                self.greedy += branch.ks
                continue
            if branch.temperature is not None and not branch.is_neutral:
                here = self._divided(tops, branch.temperature)
            elif not branch.is_neutral:
                assert cut_RA is not None
                cut, a = cut_RA[:, a], a + 1
            if branch.following:
                self._visit(j + 1, branch.following, here, cut)
            else:
                here.leaves.append((branch.ks, cut))

    def _divided(self, tops: Tops, temperature: float) -> Tops:
        chain = (*tops.chain, temperature)
        if chain not in self.tops:
            self.tops[chain] = Tops(chain, tops.top_RM / temperature, self.whole_of.get(chain))
        return self.tops[chain]

    def _cutoffs(self, j: int, values: tuple[float, ...], tops: Tops, cut_R: Tensor | None) -> Tensor:
        """(R, A) cutoffs once a truncation knob has acted with each of A values; UNDETERMINED, or M + 1 for one beyond."""
        knob, M = self.space.knobs[j], tops.top_RM.shape[1]
        assert isinstance(knob, TruncationKnob)
        if knob.sees == "row" and not self.is_whole:
            return tops.top_RM.new_full((len(tops.top_RM), len(values)), UNDETERMINED, dtype=torch.long)
        if knob.sees == "prefix":
            if (j, values) not in tops.counts:
                tops.counts[j, values] = self._counts(knob, values, tops, None)
            own_RA = tops.counts[j, values]
            return own_RA if cut_R is None else torch.minimum(own_RA, cut_R.unsqueeze(-1))
        own_RA = self._counts(knob, values, tops, cut_R)
        if cut_R is None:
            return own_RA
        is_beyond_R1 = (cut_R > M).unsqueeze(-1)
        return torch.minimum(own_RA, cut_R.unsqueeze(-1)).masked_fill_(is_beyond_R1, UNDETERMINED)

    def _counts(self, knob: TruncationKnob, values: tuple[float, ...], tops: Tops, cut_R: Tensor | None) -> Tensor:
        """(R, A) how many tokens a knob keeps, ties included; M + 1 where that may be more than M.

        Few tokens are shown at first, and more only for the cells (row, value) whose count reaches the end of those.
        """
        (R, M), A = tops.top_RM.shape, len(values)
        value_A = tops.top_RM.new_tensor(values)
        count_C = torch.empty(R * A, dtype=torch.long, device=tops.top_RM.device)
        left_c = torch.arange(R * A, device=count_C.device)
        width = M if knob.sees == "row" else FIRST if M <= TOP else TOP
        while len(left_c):
            width, row_c = min(width, M), left_c // A
            shown_cW = self._shown(knob.sees, width, tops, row_c, None if cut_R is None else cut_R[row_c])
            own_c = knob.kept(shown_cW, value_A[left_c % A]).long().clamp(max=width)
            count_C[left_c] = own_c
            if width == M:
                break
            goes_on_c = own_c == width
            left_c = left_c[goes_on_c if cut_R is None else goes_on_c & (cut_R[row_c] >= width)]
            width *= 4
        count_RA = extend_over_ties(tops.top_RM, count_C.view(R, A))
        return count_RA if self.is_whole else count_RA + (count_RA == M)

    def _shown(self, sees: str, width: int, tops: Tops, row_c: Tensor, cut_c: Tensor | None) -> Tensor:
        """(c, width) what a knob is shown of rows; a knob that sees "mass" also has the mass of whatever follows, as a logit."""
        M = tops.top_RM.shape[1]
        shown_cW = tops.top_RM[:, :width].index_select(0, row_c)
        if sees == "prefix":
            return shown_cW
        if cut_c is not None:
            shown_cW.masked_fill_(torch.arange(width, device=row_c.device) >= cut_c.clamp(min=1).unsqueeze(-1), -torch.inf)
        if sees == "row" or (self.is_whole and width == M):
            return shown_cW
        last_c = M if cut_c is None else cut_c.clamp(1, M + 1) - 1
        rest_c = (tops.mass_RW[row_c, last_c] - tops.mass_RW[row_c, width - 1]).clamp_(min=0)
        return torch.cat([shown_cW, (rest_c.log_() + tops.top_RM[row_c, 0]).unsqueeze(-1)], -1)

    def settle(self) -> tuple[Tensor, Tensor]:
        """(R, K) log P = (z_y - best) / T - log(mass of what is kept), and (R, K) True where the cutoff is undetermined."""
        top_RM, rows, K = self.tops[()].top_RM, self.rows, self.space.K
        R, M = top_RM.shape
        logps_RK, undetermined_RK = top_RM.new_empty(R, K), torch.zeros(R, K, dtype=torch.bool, device=top_RM.device)
        gap_R = rows.logit_R.double() - rows.best_R.double()
        rank_R1 = torch.searchsorted(-top_RM, -rows.logit_R.unsqueeze(-1))  # tokens above the target
        for tops in self.tops.values():
            is_cut = torch.tensor([cut_R is not None for ks, cut_R in tops.leaves for _ in ks], device=top_RM.device)
            if not len(is_cut):
                continue
            beyond_R, ks = rank_R1.new_full((R,), M + 1), [k for ks, _ in tops.leaves for k in ks]
            cut_Rk = torch.stack([beyond_R if cut_R is None else cut_R for ks, cut_R in tops.leaves for _ in ks], -1)
            gap_R1 = (gap_R / prod(tops.chain)).to(top_RM).unsqueeze(-1)
            logps_Rk = gap_R1 - tops.mass_RW.gather(-1, cut_Rk.clamp(min=1) - 1).log_()
            logps_RK[:, ks] = logps_Rk.masked_fill_(cut_Rk <= rank_R1, -torch.inf)
            if not self.is_whole:
                undetermined_RK[:, ks] = ((cut_Rk > M) | (cut_Rk == UNDETERMINED)) & is_cut
        logps_RK[:, self.greedy] = torch.where(rows.is_first_R, 0.0, -torch.inf).to(top_RM).unsqueeze(-1)
        return logps_RK, undetermined_RK


# Phase 4: finish


def _finish(logits_RV: Tensor, rows: Rows, space: KnobSpace, logps_RK: Tensor, undetermined_RK: Tensor) -> None:
    """Fills in the undetermined cells from sorted rows."""
    ks = undetermined_RK.any(0).nonzero().squeeze(-1)
    rest = space.select(ks.tolist())
    for row_r in undetermined_RK.any(-1).nonzero().squeeze(-1).split(max(1, SORTED // logits_RV.shape[1])):
        sorted_rV = sort_descending(wide(logits_RV[row_r]))
        logps_RK[row_r.unsqueeze(-1), ks] = _Walk(rest, sorted_rV, rows[row_r], is_whole=True).settle()[0]
