"""One walk through the tree of options, from the top of each row to the table of log-probabilities."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from latentknobs.knob import TruncationKnob
from latentknobs.likelihood.prefix import UNCUT, UNKNOWN, Branch, Key, Scaled, State, product, sees, tree, truncate
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

    def select(self, where_q: Tensor) -> "Targets":
        """The same rows with only some masses."""
        return replace(self, log_mass_RQ=self.log_mass_RQ[:, where_q])


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


def walk(space: KnobSpace, top_RM: Tensor, targets: Targets, whole: bool) -> tuple[Tensor, Tensor]:
    """The table of R rows, from their tops.

    Args:
        space: order-preserving knobs only.
        top_RM: the M largest logits, descending.
        whole: whether M = V.

    Returns:
        (R, K) log-probabilities, and (R, K) True where the top does not tell.
    """
    table = _Walk(space, top_RM, targets, whole)
    uncut_R1 = torch.full((len(top_RM), 1), UNCUT, device=top_RM.device)
    table.visit(0, _Front((), [_Node(tree(space), [], False)], uncut_R1), Scaled(top_RM, whole, table.mass_of.get(())))
    return table.logps_RK, table.open_RK


@dataclass(frozen=True)
class _Node:
    """A chain beginning: what may follow, the options it stands for, and whether it cuts at all."""

    following: tuple[Branch, ...]
    ks: list[int]
    cuts: bool


@dataclass(frozen=True)
class _Front:
    """All chain beginnings of one length at one temperature chain, and the tokens that each keeps of each row, (R, P)."""

    key: Key
    nodes: list[_Node]
    cut_RP: Tensor


class _Walk:
    def __init__(self, space: KnobSpace, top_RM: Tensor, targets: Targets, whole: bool) -> None:
        self.space, self.targets, self.whole = space, targets, whole
        self.mass_of = dict(zip(needs(space).keys, targets.log_mass_RQ.unbind(-1), strict=True))
        self.logps_RK = top_RM.new_empty(len(top_RM), space.K)
        self.open_RK = torch.zeros(len(top_RM), space.K, dtype=torch.bool, device=top_RM.device)
        self.rank_R1 = torch.searchsorted(-top_RM, -targets.logit_R.unsqueeze(-1))  # tokens above the target

    def visit(self, j: int, front: _Front, scaled: Scaled) -> None:
        """Lets knob j act on all chain beginnings of a front, and what follows on what that makes."""
        if j == len(self.space.knobs):
            self._settle(front, scaled)
            return
        knob = self.space.knobs[j]
        if isinstance(knob, TruncationKnob):
            act = self._prefix if sees(knob) == "prefix" else self._reading
            self.visit(j + 1, act(knob, front, scaled), scaled)
            return
        for temperature in dict.fromkeys(branch.temperature for node in front.nodes for branch in node.following):
            assert temperature is not None
            parents, nodes = _children(front, temperature)
            if temperature == 0:  # one token is left, and no knob removes the last one
                self.logps_RK[:, [k for node in nodes for k in node.ks]] = self._greedy_R1()
            elif temperature == 1:
                self.visit(j + 1, _Front(front.key, nodes, front.cut_RP[:, parents]), scaled)
            else:  # divided as often as the chain divides, so that rounding agrees with `apply`
                key = (*front.key, temperature)
                divided = Scaled(scaled.top_RM / temperature, self.whole, self.mass_of.get(key))
                self.visit(j + 1, _Front(key, nodes, front.cut_RP[:, parents]), divided)

    def _prefix(self, knob: TruncationKnob, front: _Front, scaled: Scaled) -> _Front:
        """A knob that sees no further than a cut has its own count at each temperature, whatever came before."""
        branches = [branch for node in front.nodes for branch in node.following]
        values = tuple(dict.fromkeys(branch.value for branch in branches if not branch.is_neutral))
        place = {value: g for g, value in enumerate(values)}
        own_RG = truncate(knob, values, State(scaled, None)) if values else front.cut_RP[:, :0]
        own_RG = torch.cat([own_RG, torch.full_like(front.cut_RP[:, :1], UNCUT)], -1)
        columns = [-1 if branch.is_neutral else place[branch.value] for branch in branches]
        parents, nodes = _children(front)
        return _Front(front.key, nodes, torch.minimum(front.cut_RP[:, parents], own_RG[:, columns]))

    def _reading(self, knob: TruncationKnob, front: _Front, scaled: Scaled) -> _Front:
        """A knob that reads what is left of a row acts on each chain beginning by itself, at all its values at once."""
        cuts: list[Tensor] = []
        for p, node in enumerate(front.nodes):
            before_R1 = front.cut_RP[:, p : p + 1]
            acting = tuple(branch.value for branch in node.following if not branch.is_neutral)
            if acting:
                made_RG = truncate(knob, acting, State(scaled, before_R1.squeeze(-1) if node.cuts else None))
            order = iter(range(len(acting)))
            cuts += [before_R1 if b.is_neutral else made_RG[:, (g := next(order)) : g + 1] for b in node.following]
        return _Front(front.key, _children(front)[1], torch.cat(cuts, -1))

    def _settle(self, front: _Front, scaled: Scaled) -> None:
        """Writes the table's columns of a front of whole chains."""
        columns, cut_RP, mass_RM = [node.ks[0] for node in front.nodes], front.cut_RP, scaled.mass_RM
        log_mass_RP = mass_RM.gather(-1, cut_RP.clamp(1, mass_RM.shape[1]) - 1).log_()
        if scaled.log_mass_R is not None:
            log_mass_RP = torch.where(cut_RP == UNCUT, scaled.log_mass_R.double().unsqueeze(-1), log_mass_RP)
        gap_R1 = ((self.targets.logit_R.double() - self.targets.best_R.double()) / product(front.key)).unsqueeze(-1)
        logps_RP = (gap_R1 - log_mass_RP).masked_fill_(self.rank_R1 >= cut_RP, -torch.inf)
        self.logps_RK[:, columns] = logps_RP.to(self.logps_RK.dtype)
        if not self.whole:
            self.open_RK[:, columns] = (cut_RP == UNKNOWN) | ((cut_RP > mass_RM.shape[1]) & (cut_RP < UNCUT))

    def _greedy_R1(self) -> Tensor:
        is_first_R1 = self.targets.is_first_R.unsqueeze(-1)
        return torch.zeros_like(self.logps_RK[:, :1]).masked_fill(~is_first_R1, -torch.inf)


def _children(front: _Front, temperature: float | None = None) -> tuple[list[int], list[_Node]]:
    """The chain beginnings one knob longer (at one temperature), and for each the column of the one it continues."""
    found = [(p, b) for p, node in enumerate(front.nodes) for b in node.following if temperature in (None, b.temperature)]
    cuts = [front.nodes[p].cuts or (branch.temperature is None and not branch.is_neutral) for p, branch in found]
    nodes = [_Node(branch.following, branch.ks, cut) for (_, branch), cut in zip(found, cuts, strict=True)]
    return [p for p, _ in found], nodes
