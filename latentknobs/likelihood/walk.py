"""One walk through the tree of options, from the top of each row to the table of log-probabilities."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from latentknobs.likelihood.plan import Plan, Scale, Truncate, plan_of
from latentknobs.likelihood.prefix import UNCUT, UNKNOWN, Branch, Key, product, sees, tree
from latentknobs.likelihood.rows import perhaps
from latentknobs.likelihood.tops import Tops
from latentknobs.space import KnobSpace


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
    mass_of = {} if whole else dict(zip(needs(space).keys, targets.log_mass_RQ.unbind(-1), strict=True))
    tops = Tops(top_RM.unsqueeze(0).contiguous(), whole, ((),), mass_of)
    cut_PR = torch.full((1, len(top_RM)), UNCUT, device=top_RM.device)
    for step in plan.steps:
        if isinstance(step, Scale):
            tops, cut_PR = tops.divided(step), cut_PR.index_select(0, step.parent_P)
        else:
            cut_PR = _truncated(step, tops, cut_PR)
    return _settled(plan, tops, top_RM, cut_PR, targets)


def _truncated(step: Truncate, tops: Tops, cut_PR: Tensor) -> Tensor:
    """(P, R) what is left of each row in every chain beginning once a truncation knob has acted on all of them."""
    (_, R, M), A, kind = tops.top_QRM.shape, len(step.value_A), sees(step.knob)
    row_C = (step.chain_A.unsqueeze(-1) * R + torch.arange(R, device=cut_PR.device)).view(-1)
    value_C = step.value_A.to(tops.top_QRM).repeat_interleave(R)
    if step.parent_A is None:
        own_AR = tops.counts(step.knob, row_C, value_C, None).view(A, R)
        own_AR = torch.cat([own_AR, torch.full_like(cut_PR[:1], UNCUT)])
        return torch.minimum(cut_PR.index_select(0, step.parent_P), own_AR.index_select(0, step.place_P))
    before_AR = cut_PR.index_select(0, step.parent_A)
    if kind == "row" and not tops.whole:
        made_AR = torch.full_like(before_AR, UNKNOWN)
    else:
        cut_C = before_AR.view(-1) if before_AR.numel() and perhaps(before_AR != UNCUT) else None
        made_AR = torch.minimum(before_AR, tops.counts(step.knob, row_C, value_C, cut_C).view(A, R))
        if cut_C is not None and not tops.whole:
            made_AR.masked_fill_(_is_open(before_AR, M), UNKNOWN)
    # Where the knob is neutral, what was left before it.
    is_neutral_P1 = (step.place_P == A).unsqueeze(-1)
    return torch.where(is_neutral_P1, cut_PR.index_select(0, step.parent_P), torch.cat([made_AR, cut_PR[:1]]).index_select(0, step.place_P))


def _settled(plan: Plan, tops: Tops, top_RM: Tensor, cut_PR: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None]:
    """The table of whole chains: log P = (z_y - best) / T - log(mass of what is kept)."""
    (_, R, M), device = tops.top_QRM.shape, cut_PR.device
    gap_R = targets.logit_R.double() - targets.best_R.double()
    temperature_Q = torch.tensor([product(key) for key in tops.keys], dtype=torch.float64, device=device)
    gap_QR1 = (gap_R / temperature_Q.unsqueeze(-1)).to(tops.top_QRM).unsqueeze(-1)
    logps_X = (gap_QR1 - tops.mass_QRW.log()).view(-1)  # flat (Q, R, M + 1): under every cut that there could be
    first_PR = plan.chain_P.unsqueeze(-1) * (R * (M + 1)) + torch.arange(-1, R * (M + 1) - 1, M + 1, device=device)
    logps_PR = logps_X.index_select(0, cut_PR.clamp(1, M + 1).add_(first_PR).view(-1)).view_as(cut_PR)
    rank_R = torch.searchsorted(-top_RM, -targets.logit_R.unsqueeze(-1)).squeeze(-1)  # tokens above the target
    logps_PR.masked_fill_(cut_PR <= rank_R, -torch.inf)
    greedy_1R = torch.zeros_like(targets.best_R).masked_fill_(~targets.is_first_R, -torch.inf).unsqueeze(0)
    logps_RK = torch.cat([logps_PR, greedy_1R]).index_select(0, plan.place_K).T.contiguous()
    if tops.whole or not (is_open_PR := _is_open(cut_PR, M)).any():
        return logps_RK, None
    return logps_RK, torch.cat([is_open_PR, torch.zeros_like(is_open_PR[:1])])[plan.place_K].T


def _is_open(cut: Tensor, M: int) -> Tensor:
    """Where a cut is not known: it lies beyond the top."""
    return (cut == UNKNOWN) | ((cut > M) & (cut < UNCUT))
