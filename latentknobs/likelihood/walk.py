"""One walk through the tree of options, from the top of each row to the table of log-probabilities."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from latentknobs.knob import TruncationKnob
from latentknobs.likelihood.prefix import UNKNOWN, Branch, Key, Scaled, State, product, sees, tree, truncate
from latentknobs.space import KnobSpace


@dataclass(frozen=True)
class Needs:
    """What a space asks of each row.

    Attributes:
        keys: temperature chains whose whole-row mass is read.
        greedy: whether an option puts all mass on the argmax.
        top: whether any option truncates.
    """

    keys: tuple[Key, ...]
    greedy: bool
    top: bool


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
    greedy = top = False

    def visit(j: int, branches: tuple[Branch, ...], key: Key, cut: bool) -> None:
        nonlocal greedy, top
        if not branches and not cut:
            keys[key] = None
        for branch in branches:
            if branch.is_neutral:
                visit(j + 1, branch.following, key, cut)
            elif branch.temperature is not None:
                greedy |= branch.temperature == 0
                if branch.temperature > 0:
                    visit(j + 1, branch.following, (*key, branch.temperature), cut)
            else:
                top = True
                if not cut and sees(space.knobs[j]) == "mass":
                    keys[key] = None
                visit(j + 1, branch.following, key, True)

    visit(0, tree(space), (), False)
    return Needs(tuple(keys), greedy, top)


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
    table.visit(0, tree(space), (), None)
    for key in list(table.leaves):
        table.settle(key)
    return table.logps_RK, table.open_RK


class _Walk:
    def __init__(self, space: KnobSpace, top_RM: Tensor, targets: Targets, whole: bool) -> None:
        self.space, self.top_RM, self.targets, self.whole = space, top_RM, targets, whole
        self.mass_of = dict(zip(needs(space).keys, targets.log_mass_RQ.unbind(-1), strict=True))
        self.logps_RK = top_RM.new_empty(len(top_RM), space.K)
        self.open_RK = torch.zeros(len(top_RM), space.K, dtype=torch.bool, device=top_RM.device)
        self.rank_R = (top_RM > targets.logit_R.unsqueeze(-1)).sum(-1)
        self.scaled: dict[Key, Scaled] = {}
        self.leaves: dict[Key, list[tuple[list[int], Tensor | None]]] = {}

    def at(self, key: Key) -> Scaled:
        """The top at a temperature; divided as often as the chain divides, so that rounding agrees with `apply`."""
        if key not in self.scaled:
            top_RM = self.top_RM if not key else self.at(key[:-1]).top_RM / key[-1]
            self.scaled[key] = Scaled(top_RM, self.whole, self.mass_of.get(key))
        return self.scaled[key]

    def visit(self, j: int, branches: tuple[Branch, ...], key: Key, cut_R: Tensor | None) -> None:
        """All branches that follow a chain beginning: what that made of the rows is (key, cut_R)."""
        knob, state = self.space.knobs[j], State(self.at(key), cut_R)
        for branch in branches:
            new_key, new_cut_R = key, cut_R
            if branch.temperature == 0:  # one token is left, and no knob removes the last one
                self.logps_RK[:, branch.ks] = self._greedy_R1()
                continue
            if branch.temperature is not None and not branch.is_neutral:
                new_key = (*key, branch.temperature)
            elif not branch.is_neutral:
                assert isinstance(knob, TruncationKnob)
                new_cut_R = truncate(knob, branch.value, state)
            if branch.following:
                self.visit(j + 1, branch.following, new_key, new_cut_R)
            else:
                self.leaves.setdefault(new_key, []).append((branch.ks, new_cut_R))
            if new_key != key and cut_R is None:
                self.settle(new_key)

    def settle(self, key: Key) -> None:
        """Writes the table's columns of one temperature, whose tables can then be forgotten."""
        leaves = self.leaves.pop(key, [])
        gap_R1 = ((self.targets.logit_R.double() - self.targets.best_R.double()) / product(key)).unsqueeze(-1)
        for ks in [ks for ks, cut_R in leaves if cut_R is None]:
            self.logps_RK[:, ks] = (gap_R1 - self.mass_of[key].unsqueeze(-1)).to(self.logps_RK.dtype)
        cuts = [(k, cut_R) for ks, cut_R in leaves if cut_R is not None for k in ks]
        if cuts:
            columns = [k for k, _ in cuts]
            cut_RG = torch.stack([cut_R for _, cut_R in cuts], -1)
            mass_RM = self.at(key).mass_RM
            log_mass_RG = mass_RM.gather(-1, cut_RG.clamp(1, mass_RM.shape[1]) - 1).log()
            logps_RG = (gap_R1 - log_mass_RG).masked_fill(self.rank_R.unsqueeze(-1) >= cut_RG, -torch.inf)
            self.logps_RK[:, columns] = logps_RG.to(self.logps_RK.dtype)
            if not self.whole:
                self.open_RK[:, columns] = (cut_RG == UNKNOWN) | (cut_RG > mass_RM.shape[1])
        self.scaled.pop(key, None)

    def _greedy_R1(self) -> Tensor:
        is_first_R1 = self.targets.is_first_R.unsqueeze(-1)
        return torch.zeros_like(self.logps_RK[:, :1]).masked_fill(~is_first_R1, -torch.inf)
