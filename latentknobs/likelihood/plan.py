"""What a space asks for, worked out once: its tree of chain beginnings as index tensors, one step per knob.

Beginnings of one length are handled together, whatever their temperatures: a walk is then a few large tensor operations per
knob, and small vocabularies do not spend their time on starting hundreds of small ones.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from latentknobs.knobs.knob import DecodingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.prefix import Branch, Key, sees, tree


@dataclass(frozen=True, eq=False)
class Scale:
    """A knob that divides. Q temperature chains afterwards, P chain beginnings.

    Attributes:
        parent_P: the beginning that each one continues; from_Q, divisor_Q: the chain before, and what divides it.
        keys: the Q temperature chains.
    """

    parent_P: Tensor
    from_Q: Tensor
    divisor_Q: Tensor
    keys: tuple[Key, ...]


@dataclass(frozen=True, eq=False)
class Truncate:
    """A knob that cuts. P chain beginnings afterwards; A counts to ask it for, each of all rows, of B different things.

    Attributes:
        parent_P: the beginning that each one continues.
        place_P: which count is its own; where the knob is neutral, A for a knob that sees "prefix", else A plus the parent.
        chain_B: the temperature chain of each thing that counts are asked of.
        parent_B: its beginning; None for a knob that sees "prefix", which has the same count at one temperature whatever
            came before.
        of_A, value_A: what each count is asked of, and the knob's value.
    """

    knob: TruncationKnob
    parent_P: Tensor
    place_P: Tensor
    chain_B: Tensor
    parent_B: Tensor | None
    of_A: Tensor
    value_A: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of a walk, and how its table is put together.

    Attributes:
        chain_P: the temperature chain of each whole chain.
        place_K: for each option its whole chain; P for greedy ones.
    """

    steps: tuple[Scale | Truncate, ...]
    chain_P: Tensor
    place_K: Tensor


@dataclass(frozen=True)
class _Node:
    """A chain beginning: its temperature chain, what may follow, and the options it stands for."""

    chain: int
    following: tuple[Branch, ...]
    ks: list[int]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # or autograd could not use its tensors later
def plan_of(space: KnobSpace, device: torch.device) -> Plan:
    """The plan of a space of order-preserving knobs, its tensors on a device."""
    nodes = [_Node(0, tree(space), [])]
    keys: tuple[Key, ...] = ((),)
    steps: list[Scale | Truncate] = []
    for knob in space.knobs:
        step: Scale | Truncate
        if isinstance(knob, TruncationKnob):
            step, nodes = _truncate(knob, nodes, device)
        else:
            step, nodes = _scale(knob, nodes, keys, device)
            keys = step.keys
        steps.append(step)
    place_K = torch.full((space.K,), len(nodes), dtype=torch.int32)  # what no chain leads to was greedy
    for p, node in enumerate(nodes):
        place_K[node.ks] = p
    return Plan(tuple(steps), _index([node.chain for node in nodes], device), place_K.to(device))


def _scale(knob: DecodingKnob, nodes: list[_Node], keys: tuple[Key, ...], device: torch.device) -> tuple[Scale, list[_Node]]:
    """Beginnings at temperature 0 end here: one token is left, and no knob removes the last one."""
    chains: dict[tuple[int, float], int] = {}
    parents, after = [], []
    for p, node in enumerate(nodes):
        for branch in node.following:
            assert branch.temperature is not None, knob
            if branch.temperature:
                chain = chains.setdefault((node.chain, branch.temperature), len(chains))
                parents.append(p)
                after.append(_Node(chain, branch.following, branch.ks))
    made = tuple(keys[q] if temperature == 1 else (*keys[q], temperature) for q, temperature in chains)
    divisor_Q = torch.tensor([temperature for _, temperature in chains], dtype=torch.float64, device=device)
    return Scale(_index(parents, device), _index([q for q, _ in chains], device), divisor_Q, made), after


def _truncate(knob: TruncationKnob, nodes: list[_Node], device: torch.device) -> tuple[Truncate, list[_Node]]:
    asked: dict[tuple[int, float], int] = {}  # of what, value
    things: dict[tuple[int, int], int] = {}  # temperature chain, beginning (or 0)
    alone = sees(knob) == "prefix"
    parents, places, after = [], [], []
    for p, node in enumerate(nodes):
        for branch in node.following:
            if branch.is_neutral:
                places.append(-1)
            else:
                thing = things.setdefault((node.chain, 0 if alone else p), len(things))
                places.append(asked.setdefault((thing, branch.value), len(asked)))
            parents.append(p)
            after.append(_Node(node.chain, branch.following, branch.ks))
    neutral = [len(asked) + (0 if alone else p) for p in parents]
    places = [other if place < 0 else place for place, other in zip(places, neutral, strict=True)]
    value_A = torch.tensor([value for _, value in asked], dtype=torch.float64, device=device)
    chain_B = _index([chain for chain, _ in things], device)
    parent_B = None if alone else _index([p for _, p in things], device)
    of_A = _index([thing for thing, _ in asked], device)
    return Truncate(knob, _index(parents, device), _index(places, device), chain_B, parent_B, of_A, value_A), after


def _index(items: list[int], device: torch.device) -> Tensor:
    return torch.tensor(items, dtype=torch.int32, device=device)
