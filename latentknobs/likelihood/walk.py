"""One walk through the tree of options, from the top of each row to the table of log-probabilities."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.plan import Plan, Scale, Truncate, plan_of
from latentknobs.likelihood.prefix import UNCUT, UNKNOWN, Branch, Key, product, sees, tree
from latentknobs.likelihood.tops import Tops
from latentknobs.tensors import any_or_unknown

INDICES = 2**31 - 1  # places that an int32 index tells apart


@dataclass(frozen=True)
class Needs:
    """What a space asks of each row.

    Attributes:
        keys: temperature chains whose whole-row mass is read.
        greedy: whether an option puts all mass on the argmax.
        top: whether any option truncates.
        key_of: for each option, the index of its temperature chain in `keys`; -1 where it is greedy or truncates.
    """

    keys: tuple[Key, ...]
    greedy: bool
    top: bool
    key_of: tuple[int, ...]


@dataclass(frozen=True)
class Targets:
    """What is known of R rows and their target tokens.

    Attributes:
        logit_R: the target's logit.
        best_R: the row's largest logit.
        is_first_R: whether the target is the row's first argmax.
        log_mass_RQ: log sum exp((z - best) / T) for each of the space's `Needs.keys`.
    """

    logit_R: Tensor
    best_R: Tensor
    is_first_R: Tensor
    log_mass_RQ: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Targets":
        return Targets(self.logit_R[rows], self.best_R[rows], self.is_first_R[rows], self.log_mass_RQ[rows])


@lru_cache(maxsize=256)
def needs(space: KnobSpace) -> Needs:
    """What `walk` will ask for (see `Needs`)."""
    keys: dict[Key, None] = {}
    key_of: dict[int, Key] = {}
    greedy = top = False

    def visit(j: int, branches: tuple[Branch, ...], key: Key, cut: bool) -> None:
        nonlocal greedy, top
        for branch in branches:
            new_key, new_cut = key, cut
            if branch.temperature == 0:
                greedy = True
                continue
            if branch.temperature is not None and not branch.is_neutral:
                new_key = (*key, branch.temperature)
            elif not branch.is_neutral:
                top = new_cut = True
                if not cut and sees(space.knobs[j]) == "mass":
                    keys[key] = None
            if branch.following:
                visit(j + 1, branch.following, new_key, new_cut)
            elif not new_cut:
                keys[new_key] = None
                key_of[branch.ks[0]] = new_key

    visit(0, tree(space), (), False)
    index = {key: q for q, key in enumerate(keys)}
    columns = tuple(index[key_of[k]] if k in key_of else -1 for k in range(space.K))
    return Needs(tuple(keys), greedy, top, columns)


def scale_only(space: KnobSpace, targets: Targets) -> Tensor:
    """(R, K) the table of a space in which nothing truncates."""
    need = needs(space)
    temperature_Q = torch.tensor([product(key) for key in need.keys], dtype=torch.float64, device=targets.logit_R.device)
    gap_R1 = (targets.logit_R.double() - targets.best_R.double()).unsqueeze(-1)
    logps_RQ = (gap_R1 / temperature_Q - targets.log_mass_RQ).to(targets.log_mass_RQ.dtype)
    if not need.greedy:
        return logps_RQ[:, need.key_of]
    greedy_R1 = torch.zeros_like(targets.logit_R).masked_fill(~targets.is_first_R, -torch.inf).unsqueeze(-1)
    return torch.cat([logps_RQ, greedy_R1], -1)[:, need.key_of]


def walk(space: KnobSpace, top_RM: Tensor, targets: Targets, whole: bool) -> tuple[Tensor, Tensor | None]:
    """The table of R rows, from their tops.

    Args:
        space: order-preserving knobs only.
        top_RM: the M largest logits, descending.
        targets: of these, the masses are not read if `whole`.
        whole: whether M = V.

    Returns:
        (R, K) log-probabilities, and (R, K) True where the top does not tell; None: it tells everything.
    """
    plan = plan_of(space, top_RM.device)
    if len(top_RM) > (rows := max(1, INDICES // _places(space, plan, top_RM.shape[1]))):
        return _in_parts(space, top_RM, targets, whole, rows)
    mass_of = {} if whole else dict(zip(needs(space).keys, targets.log_mass_RQ.unbind(-1), strict=True))
    tops = Tops(top_RM.unsqueeze(0).contiguous(), whole, ((),), mass_of)
    cut_PR = torch.full((1, len(top_RM)), UNCUT, dtype=torch.int32, device=top_RM.device)
    is_any_open = False
    for step in plan.steps:
        if isinstance(step, Scale):
            tops, cut_PR = tops.divided(step), cut_PR.index_select(0, step.parent_P)
        else:
            cut_PR, is_any_open = _truncated(step, tops, cut_PR, is_any_open)
    rank_R = torch.searchsorted(-top_RM, -targets.logit_R.unsqueeze(-1), out_int32=True).squeeze(-1)  # tokens above the target
    logps_RK = _settled(plan, tops, cut_PR, targets, rank_R)
    if not is_any_open or not any_or_unknown(is_open_PR := _is_open(cut_PR, top_RM.shape[1])):
        return logps_RK, None
    return logps_RK, torch.cat([is_open_PR, torch.zeros_like(is_open_PR[:1])]).index_select(0, plan.place_K).T.contiguous()


def _places(space: KnobSpace, plan: Plan, M: int) -> int:
    """What one row takes of the largest table that is indexed."""
    chains = max((len(step.keys) for step in plan.steps if isinstance(step, Scale)), default=1)
    return max(chains * (M + 1), space.K)


def _in_parts(space: KnobSpace, top_RM: Tensor, targets: Targets, whole: bool, rows: int) -> tuple[Tensor, Tensor | None]:
    parts = [slice(first, first + rows) for first in range(0, len(top_RM), rows)]
    tables = [walk(space, top_RM[part], targets[part], whole) for part in parts]
    logps_RK, is_told = torch.cat([logps_rK for logps_rK, _ in tables]), all(open_rK is None for _, open_rK in tables)
    made = [torch.zeros_like(logps_rK, dtype=torch.bool) if open_rK is None else open_rK for logps_rK, open_rK in tables]
    return logps_RK, None if is_told else torch.cat(made)


def _truncated(step: Truncate, tops: Tops, cut_PR: Tensor, is_any_open: bool) -> tuple[Tensor, bool]:
    """(P, R) what is left of each row in every chain beginning once a truncation knob has acted on all of them.

    Args:
        is_any_open: whether any cut may lie beyond the top. The same of the result is returned.
    """
    (_, R, M), A = tops.top_QRM.shape, len(step.value_A)
    row_R = torch.arange(R, dtype=torch.int32, device=cut_PR.device)
    row_X = (step.chain_B.unsqueeze(-1) * R + row_R).view(-1)
    of_C = (step.of_A.unsqueeze(-1) * R + row_R).view(-1)
    value_C = step.value_A.to(tops.top_QRM).repeat_interleave(R)
    if step.parent_B is None:
        own_AR = tops.counts(step.knob, row_X, None, of_C, value_C).view(A, R)
        is_any_open = is_any_open or (not tops.whole and any_or_unknown(own_AR > M))
        own_AR = torch.cat([own_AR, torch.full_like(cut_PR[:1], UNCUT)])
        own_PR = own_AR.index_select(0, step.place_P)
        return torch.minimum(cut_PR.index_select(0, step.parent_P), own_PR), is_any_open
    before_BR = cut_PR.index_select(0, step.parent_B)
    before_AR = before_BR.index_select(0, step.of_A)
    if sees(step.knob) == "row" and not tops.whole:
        made_AR, is_any_open = torch.full_like(before_AR, UNKNOWN), True
    else:
        cut_X = before_BR.view(-1) if any_or_unknown(before_BR != UNCUT) else None
        own_AR = tops.counts(step.knob, row_X, cut_X, of_C, value_C).view(A, R)
        made_AR = torch.minimum(before_AR, own_AR)
        if is_any_open:
            made_AR.masked_fill_(_is_open(before_AR, M), UNKNOWN)
        is_any_open = is_any_open or (not tops.whole and any_or_unknown(own_AR > M))
    return torch.cat([made_AR, cut_PR]).index_select(0, step.place_P), is_any_open


def _settled(plan: Plan, tops: Tops, cut_PR: Tensor, targets: Targets, rank_R: Tensor) -> Tensor:
    """(R, K) the table of whole chains: log P = (z_y - best) / T - log(mass of what is kept)."""
    (_, R, M), device = tops.top_QRM.shape, cut_PR.device
    gap_R = targets.logit_R.double() - targets.best_R.double()
    temperature_Q = torch.tensor([product(key) for key in tops.keys], dtype=torch.float64, device=device)
    gap_QR = (gap_R / temperature_Q.unsqueeze(-1)).to(tops.top_QRM)
    first_R = torch.arange(-1, R * (M + 1) - 1, M + 1, dtype=torch.int32, device=device)
    first_PR = plan.chain_P.unsqueeze(-1) * (R * (M + 1)) + first_R
    place_PR = cut_PR.clamp(1, M + 1).add_(first_PR)  # in the flattened (Q, R, M + 1)
    mass_PR = tops.mass_QRW.view(-1).index_select(0, place_PR.view(-1)).view_as(cut_PR)
    logps_PR = gap_QR.index_select(0, plan.chain_P).sub_(mass_PR.log_())
    logps_PR.masked_fill_(cut_PR <= rank_R, -torch.inf)
    greedy_1R = torch.zeros_like(targets.best_R).masked_fill_(~targets.is_first_R, -torch.inf).unsqueeze(0)
    return torch.cat([logps_PR, greedy_1R]).index_select(0, plan.place_K).T.contiguous()


def _is_open(cut: Tensor, M: int) -> Tensor:
    """Where a cut is not known: it lies beyond the top."""
    return (cut == UNKNOWN) | ((cut > M) & (cut < UNCUT))
