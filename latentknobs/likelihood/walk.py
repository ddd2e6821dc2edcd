"""One walk through the tree of options, from the top of each row to the table of log-probabilities."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from latentknobs.knob import ScalingKnob, TruncationKnob
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
        scales: all temperature chains.
    """

    keys: tuple[Key, ...]
    greedy: bool
    top: bool
    key_of: tuple[int, ...]
    scales: tuple[Key, ...]


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
    scales: dict[Key, None] = {(): None}
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
                scales[new_key] = None
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
    return Needs(tuple(keys), greedy, top, columns, tuple(scales))


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
    root = _Front(((),), ([_Node(tree(space), [], False)],), uncut_R1)
    table.visit(0, root, Scaled(top_RM, whole, table.mass_of.get(())))
    return table.logps_RK, table.open_RK


@dataclass(frozen=True)
class _Node:
    """A chain beginning: what may follow, the options it stands for, and whether it cuts at all."""

    following: tuple[Branch, ...]
    ks: list[int]
    cuts: bool


@dataclass(frozen=True)
class _Front:
    """All chain beginnings of one length at one temperature, or at G temperatures that are followed by the same values.

    The latter are walked together, each temperature's rows under those of the one before: fewer, larger operations.

    Attributes:
        keys: the G temperature chains.
        groups: for each, its P nodes.
        cut_NP: (G * R, P) how many tokens each keeps.
    """

    keys: tuple[Key, ...]
    groups: tuple[list[_Node], ...]
    cut_NP: Tensor


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
        branches = [branch for node in front.groups[0] for branch in node.following]
        temperatures = [t for t in dict.fromkeys(branch.temperature for branch in branches) if t is not None]
        if 0 in temperatures:  # one token is left, and no knob removes the last one
            self.logps_RK[:, [k for branch in branches if branch.temperature == 0 for k in branch.ks]] = self._greedy_R1()
        together: dict[object, list[float]] = {}
        for t in [t for t in temperatures if t > 0]:
            shape = tuple((p, branch.shape[1]) for p, branch in _found(front.groups[0], t))
            last = not any(isinstance(later, ScalingKnob) for later in self.space.knobs[j + 1 :])
            together.setdefault(shape if last else t, []).append(t)
        for group in together.values():
            self.visit(j + 1, *self._scale(front, scaled, group))

    def _scale(self, front: _Front, scaled: Scaled, temperatures: list[float]) -> tuple[_Front, Scaled]:
        """Divides by several temperatures, one block of rows each."""
        keys = tuple(front.keys[0] if t == 1 else (*front.keys[0], t) for t in temperatures)
        parents = [p for p, _ in _found(front.groups[0], temperatures[0])]
        groups = tuple([_grown(front.groups[0][p], branch) for p, branch in _found(front.groups[0], t)] for t in temperatures)
        # Divided as often as the chain divides, so that rounding agrees with `apply`.
        top_NM = torch.cat([scaled.top_RM if t == 1 else scaled.top_RM / t for t in temperatures])
        masses = [self.mass_of[key] for key in keys if key in self.mass_of]
        mass_N = torch.cat(masses) if len(masses) == len(keys) else None
        cut_NP = front.cut_NP[:, parents].repeat(len(keys), 1)
        return _Front(keys, groups, cut_NP), Scaled(top_NM, self.whole, mass_N)

    def _prefix(self, knob: TruncationKnob, front: _Front, scaled: Scaled) -> _Front:
        """A knob that sees no further than a cut has its own count at each temperature, whatever came before."""
        branches = [branch for node in front.groups[0] for branch in node.following]
        values = tuple(dict.fromkeys(branch.value for branch in branches if not branch.is_neutral))
        place = {value: g for g, value in enumerate(values)}
        own_NG = truncate(knob, values, State(scaled, None)) if values else front.cut_NP[:, :0]
        own_NG = torch.cat([own_NG, torch.full_like(front.cut_NP[:, :1], UNCUT)], -1)
        parents, groups = _children(front)
        columns = [-1 if branch.is_neutral else place[branch.value] for branch in branches]
        return _Front(front.keys, groups, torch.minimum(front.cut_NP[:, parents], own_NG[:, columns]))

    def _reading(self, knob: TruncationKnob, front: _Front, scaled: Scaled) -> _Front:
        """A knob that reads what is left of a row acts on each chain beginning by itself, at all its values at once."""
        cuts: list[Tensor] = []
        for p, node in enumerate(front.groups[0]):
            before_N1 = front.cut_NP[:, p : p + 1]
            acting = tuple(branch.value for branch in node.following if not branch.is_neutral)
            if acting:
                made_NG = truncate(knob, acting, State(scaled, before_N1.squeeze(-1) if node.cuts else None))
            order = iter(range(len(acting)))
            cuts += [before_N1 if b.is_neutral else made_NG[:, (g := next(order)) : g + 1] for b in node.following]
        return _Front(front.keys, _children(front)[1], torch.cat(cuts, -1))

    def _settle(self, front: _Front, scaled: Scaled) -> None:
        """Writes the table's columns of a front of whole chains."""
        G, cut_NP, mass_NM = len(front.keys), front.cut_NP, scaled.mass_RM
        M = mass_NM.shape[1]
        log_mass_NP = mass_NM.gather(-1, cut_NP.clamp(1, M) - 1).log_()
        if scaled.log_mass_R is not None:
            log_mass_NP = torch.where(cut_NP == UNCUT, scaled.log_mass_R.double().unsqueeze(-1), log_mass_NP)
        gap_R1 = (self.targets.logit_R.double() - self.targets.best_R.double()).unsqueeze(-1)
        gap_N1 = torch.cat([gap_R1 / product(key) for key in front.keys])
        logps_NP = (gap_N1 - log_mass_NP).masked_fill_(self.rank_R1.repeat(G, 1) >= cut_NP, -torch.inf)
        open_NP = None if self.whole else (cut_NP == UNKNOWN) | ((cut_NP > M) & (cut_NP < UNCUT))
        for g, nodes in enumerate(front.groups):
            columns, rows = [node.ks[0] for node in nodes], slice(g * len(gap_R1), (g + 1) * len(gap_R1))
            self.logps_RK[:, columns] = logps_NP[rows].to(self.logps_RK.dtype)
            if open_NP is not None:
                self.open_RK[:, columns] = open_NP[rows]

    def _greedy_R1(self) -> Tensor:
        is_first_R1 = self.targets.is_first_R.unsqueeze(-1)
        return torch.zeros_like(self.logps_RK[:, :1]).masked_fill(~is_first_R1, -torch.inf)


def _found(nodes: list[_Node], temperature: float) -> list[tuple[int, Branch]]:
    """The branches with one temperature, each with the column of the chain beginning that it continues."""
    return [(p, branch) for p, node in enumerate(nodes) for branch in node.following if branch.temperature == temperature]


def _grown(node: _Node, branch: Branch) -> _Node:
    """A chain beginning one knob longer."""
    return _Node(branch.following, branch.ks, node.cuts or (branch.temperature is None and not branch.is_neutral))


def _children(front: _Front) -> tuple[list[int], tuple[list[_Node], ...]]:
    """The chain beginnings one knob longer, and for each the column of the one it continues."""
    parents = [p for p, node in enumerate(front.groups[0]) for _ in node.following]
    return parents, tuple([_grown(node, branch) for node in nodes for branch in node.following] for nodes in front.groups)
