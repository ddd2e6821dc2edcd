"""The policies of one process, by name: those that requests may ask for."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from latentknobs.engines.base import SECOND
from latentknobs.errors import ConfigError
from latentknobs.policies import Policy, reads

Picks = Mapping[str, Policy]  # by pick; "" for a policy that has no pick
_POLICIES: dict[str, Picks] = {}
KNOWN: dict[str, tuple[str, ...]] = {}  # their picks; also in a server's front end, which holds no policies


def register(name: str, picks: Picks, device: torch.device | str) -> None:
    """Makes policies ready to decode with, on a device; ConfigError if one reads what this engine does not give."""
    _POLICIES[name] = {pick: _ready(name, policy, torch.device(device)) for pick, policy in picks.items()}
    learn({name: tuple(filter(None, picks))})


def learn(names: Mapping[str, tuple[str, ...]]) -> None:
    """The names and picks that requests are checked against in this process."""
    KNOWN.update({name: tuple(picks) for name, picks in names.items()})


def known() -> Mapping[str, tuple[str, ...]] | None:
    """What `learn` has seen; None before."""
    return KNOWN or None


def find(name: str, pick: str | None) -> Policy:
    """The policy of a request; ConfigError for an unknown name."""
    if name not in _POLICIES:
        raise ConfigError(
            f"There is no policy {name!r} in this worker of vLLM. Known: {', '.join(sorted(_POLICIES)) or '(none)'}."
        )
    picks = _POLICIES[name]
    return picks.get(pick or "greedy") or next(iter(picks.values()))


def described() -> dict[str, Any]:
    """What clients may know of each policy: its identity by pick, its knobs with their order, and its level."""
    return {
        name: {
            "identity": {pick or "greedy": policy.identity() for pick, policy in picks.items()},
            "picks": [pick for pick in picks if pick],
            "space": next(iter(picks.values())).space.to_dict(),
            "level": next(iter(picks.values())).segmenter.level,
        }
        for name, picks in _POLICIES.items()
    }


def check(name: str, policy: Policy) -> None:
    """Refuses a policy that reads what vLLM does not give: a ConfigError names it, and the knob."""
    if SECOND in reads(policy):
        knobs = [knob.name for knob in policy.space.knobs if SECOND in getattr(knob, "needs", ())]
        who = f"its knob {knobs[0]!r}" if knobs else "it"
        raise ConfigError(
            f"The policy {name!r} cannot run in vLLM: {who} reads second logits, and vLLM reads each token once. Use it with "
            "transformers, or leave the knob out."
        )


def _ready(name: str, policy: Policy, device: torch.device) -> Policy:
    check(name, policy)
    policy = copy.copy(policy)
    for key, value in vars(policy).items():
        if isinstance(value, torch.nn.Module):
            setattr(policy, key, copy.deepcopy(value).to(device))
    return policy
