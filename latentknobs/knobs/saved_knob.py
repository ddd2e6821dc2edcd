"""What a saved adapter remembers of each knob, so that a knob that has changed since is noticed, option by option.

Behaviour is a hash of the knob's outputs on a fixed float64 probe. The probe is built from exact binary fractions and
the outputs are rounded to 1e-6 nats, so that the hash is the same on every machine and thread count.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from latentknobs.errors import AdapterError, UnknownNameError
from latentknobs.knobs.context import Context
from latentknobs.knobs.grid import LONGEST
from latentknobs.knobs.knob import DecodingKnob
from latentknobs.knobs.registry import HERE, knob_class, source_of, sources

ROWS, VOCABULARY, HISTORY, HIDDEN = 8, 61, 5, 16
Word = Annotated[str, Field(max_length=200)]  # of a file


class SavedKnob(BaseModel):
    """What `knob_identity` writes and `resolve_saved` reads; only the name and the grid are required."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    name: Word
    options: Annotated[list[float], Field(max_length=LONGEST)]
    settings: dict[str, Any] = {}
    distribution: Word = HERE
    version: Word = ""
    position: int = 0
    hashes: Annotated[list[Word], Field(max_length=LONGEST)] = []


def probe(hidden_size: int | None = None) -> tuple[Tensor, Context]:
    """(8, 61) float64 logits, from flat to peaked, with ties, removed tokens and two offsets; and a complete context."""
    row_N1 = torch.arange(ROWS).unsqueeze(-1)
    rank_NV = (row_N1 * 31 + torch.arange(VOCABULARY) * 17) % VOCABULARY  # 61 is prime: each row holds every rank once
    rank_NV[3] //= 4
    logits_NV = -rank_NV.double() * 2.0 ** (row_N1 - 5)
    logits_NV[4, ::7] = -torch.inf
    logits_NV[5] -= 40.0
    logits_NV[2::4] += 20.0
    previous_NL = (row_N1 * 31 + torch.arange(HISTORY) * 13) % VOCABULARY
    previous_NL[1, :2] = -1
    unit_ND = (row_N1 * 31 + torch.arange(hidden_size or HIDDEN) * 17) % 61  # the knob's own logits are not those of the LM
    return logits_NV, Context(
        previous_NL=previous_NL, position_N=torch.arange(ROWS), second_NV=logits_NV.flip(0) / 2,
        hidden_ND=unit_ND.double() / 32 - 1, logits_NV=logits_NV.roll(1, -1),
    )  # fmt: skip


def option_hashes(knob: DecodingKnob) -> list[str]:
    """For each option of the grid, 16 hex digits that stand for what it does."""
    (logits_NV, context), hashes = probe(getattr(knob, "hidden_size", None)), []
    for value in knob.options:
        logps_NV = knob.apply_in(logits_NV.clone(), logits_NV.new_full((ROWS,), value), context).log_softmax(-1)
        text = " ".join("-" if x == -torch.inf else f"{round(x, 6) + 0.0:.6f}" for x in logps_NV.flatten().tolist())
        hashes.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return hashes


def knob_identity(knob: DecodingKnob, position: int = 0) -> dict[str, Any]:
    """Plain data: name, distribution, version, grid, further settings, place in the chain, and hashes of the behaviour."""
    source, hashes = source_of(knob), option_hashes(knob)
    settings = knob.model_dump(mode="json")
    return {
        "name": knob.name,
        "distribution": source.distribution,
        "version": source.version,
        "position": position,
        "options": settings.pop("options"),
        "settings": settings,
        "hashes": hashes,
        "hash": hashlib.sha256("".join(hashes).encode()).hexdigest()[:16],
    }


def resolve_saved(saved: Mapping[str, Any]) -> DecodingKnob:
    """The installed knob that `knob_identity` described, from entry points and `register` only.

    UnknownNameError says which distribution to install; other errors are those of `registry.resolve`.
    """
    name, distribution = str(saved["name"]), saved.get("distribution", HERE)
    offers = [source for source in sources() if source.name == name]
    if not offers:
        remedy = "call latentknobs.register on its class first" if distribution == HERE else f"install {origin(saved)}"
        raise UnknownNameError(f"There is no knob {name!r} here; it was saved from {origin(saved)}. To load it, {remedy}.")
    is_clash = len(offers) > 1 and any(source.distribution == distribution for source in offers)
    cls = knob_class(f"{distribution}:{name}" if is_clash else name)
    return cls(**{**saved.get("settings", {}), "options": saved["options"]})


def origin(saved: Mapping[str, Any]) -> str:
    """Distribution and version of an identity, in words."""
    return f"{saved.get('distribution', '?')} {saved.get('version', '')}".strip()


def check_identity(knob: DecodingKnob, saved: Mapping[str, Any], position: int | None = None) -> None:
    """AdapterError if a knob is not, or no longer does, what `knob_identity` described; it names the options that changed."""
    now = knob_identity(knob, 0 if position is None else position)
    subject = f"The knob {knob.name!r} of {origin(now)}"
    if list(saved["options"]) != now["options"]:
        raise AdapterError(f"{subject} has the options {now['options']}; the adapter was saved with {list(saved['options'])}.")
    if position is not None and saved.get("position", position) != position:
        raise AdapterError(f"{subject} acts at place {position} of the chain; when the adapter was saved it acted at place "
                           f"{saved['position']}. Order is meaning: restore it.")  # fmt: skip
    hashes = saved.get("hashes", now["hashes"])
    if len(hashes) != len(knob.options):
        found = f"{len(hashes)} hashes for {len(knob.options)} options"
        raise AdapterError(f"The saved data of the knob {knob.name!r} has {found}; it is damaged. Save the adapter again.")
    changed = [v for v, a, b in zip(knob.options, hashes, now["hashes"], strict=True) if a != b]
    if changed:
        values = ", ".join(f"{knob.name} {value:g}" for value in changed)
        raise AdapterError(
            f"{subject} no longer does what it did when the adapter was saved with {origin(saved)}: {values} changed. "
            f"Install the version it was saved with, or train again."
        )
