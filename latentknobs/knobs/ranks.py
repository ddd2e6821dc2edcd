"""Checks before sampling that all processes of a distributed run have resolved the same knobs."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from latentknobs.errors import PluginError
from latentknobs.knobs.identity import knob_identity, origin
from latentknobs.knobs.space import KnobSpace


def describe(space: KnobSpace) -> dict[str, Any]:
    """What must be equal on all ranks: fingerprint, chain and options in words, and each knob's origin and behaviour."""
    items = [knob_identity(knob, position) for position, knob in enumerate(space.knobs)]
    origins = {item["name"]: f"{origin(item)} (behaviour {item['hash']})" for item in items}
    return {"fingerprint": space.fingerprint(), "space": repr(space), "origin": origins}


def check_same(ranks: Sequence[dict[str, Any]]) -> None:
    """Refuses ranks that differ.

    Args:
        ranks: `describe(space)` of every rank, by rank.

    Raises:
        PluginError: naming two ranks and what differs between them.
    """
    for rank, other in enumerate(ranks):
        if other["fingerprint"] == ranks[0]["fingerprint"]:
            continue
        if other["space"] != ranks[0]["space"]:
            raise PluginError(
                f"Rank {rank} has {other['space']}, rank 0 has {ranks[0]['space']}. "
                "Start all ranks with the same knobs and settings."
            )
        differs = [name for name in other["origin"] if other["origin"][name] != ranks[0]["origin"][name]]
        what = "; ".join(f"{name} is {other['origin'][name]} there and {ranks[0]['origin'][name]} on rank 0" for name in differs)
        raise PluginError(f"Rank {rank} resolved other knobs: {what or 'other options'}. Install the same versions everywhere.")


def check_ranks(space: KnobSpace) -> None:
    """Compares the space with that of every other rank. Does nothing outside `torch.distributed`.

    Raises:
        PluginError: on every rank, if any differs.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, describe(space))
        check_same(ranks)
