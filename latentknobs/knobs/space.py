"""A knob space: knobs in the order in which they act, and the joint settings (options) a head may choose from.

Order is meaning: min-p before or after top-p keeps different tokens. A space therefore carries its order, shows it
in its `repr`, and saves it.
"""

import hashlib
import itertools
import json
import math
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from latentknobs.errors import ConfigError, SpaceError, did_you_mean
from latentknobs.files import fit
from latentknobs.knobs.knob import ContextKnob, DecodingKnob, Stage
from latentknobs.knobs.registry import KnobSpec, resolve
from latentknobs.knobs.saved_knob import SavedKnob, check_identity, knob_identity, origin, resolve_saved

_STAGES = {
    # generation/utils.py: penalties, temperature, top_h, top_k, top_p, min_p, typical, epsilon, eta
    "transformers": "context scale spread rank mass threshold shape tail top",
    # v1/sample: penalties, temperature, min_p, then top_k and top_p
    "vllm": "context scale threshold spread rank mass shape tail top",
    # common/sampling: penalties, top_n_sigma, top_k, typical, top_p, min_p, xtc, temperature last
    "llama.cpp": "context spread rank shape mass threshold tail top scale",
}
LARGEST = 2**17  # options; more than this is a grid by mistake
ORDERS: dict[str, tuple[Stage, ...]] = {engine: tuple(map(Stage, text.split())) for engine, text in _STAGES.items()}


class SavedSpace(BaseModel):
    """What `KnobSpace.to_dict` writes and `from_dict` reads; `grid` is None for the full product."""

    model_config = ConfigDict(strict=True)

    order: Literal["transformers", "vllm", "llama.cpp", "given"]
    knobs: Annotated[list[SavedKnob], Field(min_length=1, max_length=64)]
    grid: Annotated[list[list[int]], Field(min_length=1, max_length=LARGEST)] | None


@dataclass(frozen=True, repr=False)
class KnobSpace:
    """Knobs in order, and the K options. Build it with `KnobSpace.of`.

    Attributes:
        knobs: J knobs in the order in which they act on the logits.
        grid_KJ: for each option, the index of its value in each knob's grid.
        order: the engine whose order this is, or "given".
    """

    knobs: tuple[DecodingKnob, ...]
    grid_KJ: tuple[tuple[int, ...], ...]
    order: str = "transformers"

    @classmethod
    def of(cls, *specs: KnobSpec | Mapping[str, Sequence[float]], order: str | Sequence[str] = "transformers") -> "KnobSpace":
        """The full product of the knobs' grids.

        Args:
            specs: names, `"name:grid"`, `{name: grid}` (several names are several knobs), or knob objects.
            order: an engine's name from `ORDERS`, or all knob names in the order in which they act. Knobs that share a
                stage act in the order in which they are written.

        Raises:
            SpaceError: no knob, a knob twice, an unknown order, or more than 131,072 options.
            UnknownNameError, PluginError, GridError, ConfigError: see `latentknobs.knobs.registry.resolve`.
        """
        single = itertools.chain.from_iterable(
            [{name: grid} for name, grid in spec.items()] if isinstance(spec, Mapping) else [spec] for spec in specs
        )
        knobs = [resolve(spec) for spec in single]
        written = [knob.name for knob in knobs]
        if not knobs:
            raise SpaceError("A space needs at least one knob, e.g. KnobSpace.of('temperature').")
        if twice := sorted({name for name in written if written.count(name) > 1}):
            raise SpaceError(f"The knob {twice[0]!r} stands twice in {written}. Merge its two grids into one.")
        ordered, label = _ordered(knobs, order)
        if (size := math.prod(len(knob.options) for knob in knobs)) > LARGEST:
            raise SpaceError(
                f"The full product of {written} has {size:,} options, more than {LARGEST:,}. Shorten the grids, leave out knobs, "
                "or choose options from a smaller product with `select`."
            )
        product = tuple(itertools.product(*(range(len(knob.options)) for knob in ordered)))
        return cls(ordered, product, label)

    def select(self, keep: Iterable[int] | Iterable[Mapping[str, float]]) -> "KnobSpace":
        """The space with only some options ("strategies"), by index or as `{"temperature": 0.2, "top_p": 0.9}`.

        Raises:
            SpaceError: nothing kept, an option twice, or one that this space does not have.
            TypeError: an index that is not a whole number.
        """
        rows = [self.index(item) if isinstance(item, Mapping) else operator.index(item) for item in keep]
        if not rows:
            raise SpaceError("A subset of options must keep at least one.")
        if bad := [row for row in rows if not 0 <= row < self.K]:
            raise SpaceError(f"There is no option {bad[0]}: this space has options 0 to {self.K - 1}.")
        if len(set(rows)) < len(rows):
            raise SpaceError(f"The subset {reprlib.repr(rows)} names an option twice.")
        return KnobSpace(self.knobs, tuple(self.grid_KJ[row] for row in rows), self.order)

    def index(self, option: Mapping[str, float]) -> int:
        """The index of a joint setting from its values."""
        if set(option) == set(self.names):
            place_J = tuple(_place(knob, option[knob.name]) for knob in self.knobs)
            if None not in place_J and place_J in self._row:
                return self._row[place_J]
        raise SpaceError(f"There is no option {dict(option)} in {self!r}.")

    @property
    def K(self) -> int:
        """Number of options."""
        return len(self.grid_KJ)

    @property
    def names(self) -> tuple[str, ...]:
        """Knob names in the order in which they act."""
        return tuple(knob.name for knob in self.knobs)

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """The parts of a `Context` that some knob of the space reads; empty for most spaces."""
        return tuple(dict.fromkeys(part for knob in self.knobs if isinstance(knob, ContextKnob) for part in knob.needs))

    def check_width(self, hidden_size: Callable[[], int | None]) -> None:
        """Refuses, by a ConfigError, a knob that reads hidden states of another width than those of the model."""
        for knob in self.knobs:
            wanted = getattr(knob, "hidden_size", None)
            if wanted is not None and wanted != (found := hidden_size()):
                raise ConfigError(
                    f"The knob {knob.name!r} reads hidden states of width {wanted}, and this model's have {found}. Train "
                    "what it reads on a run of this model, e.g. latentknobs discriminator RUN."
                )

    @property
    def options(self) -> list[dict[str, float]]:
        """Each of the K joint settings, by knob name."""
        return [self._option(k) for k in range(self.K)]

    def _option(self, k: int) -> dict[str, float]:
        return {knob.name: knob.options[i] for knob, i in zip(self.knobs, self.grid_KJ[k], strict=True)}

    @cached_property
    def _row(self) -> dict[tuple[int | None, ...], int]:
        return {place_J: row for row, place_J in enumerate(self.grid_KJ)}

    @cached_property
    def is_product(self) -> bool:
        """Whether the options are exactly the full product of the grids, in order."""
        return self.grid_KJ == tuple(itertools.product(*(range(len(knob.options)) for knob in self.knobs)))

    def values_KJ(self, device: torch.device | str = "cpu") -> Tensor:
        """(K, J) float64, the value of every knob in every option."""
        return self._values_KJ.to(device=device, copy=True)

    @cached_property
    def _values_KJ(self) -> Tensor:
        with torch.inference_mode(False):  # or autograd could not use them later
            return torch.tensor([list(self._option(k).values()) for k in range(self.K)], dtype=torch.float64)

    def label(self, k: int) -> str:
        """Option k in words: `temperature 0.2, top_p 0.9`."""
        return ", ".join(f"{name} {short(value)}" for name, value in self._option(k).items())

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns back into this space where the same plugins are installed."""
        return {
            "order": self.order,
            "knobs": [knob_identity(knob, position) for position, knob in enumerate(self.knobs)],
            "grid": None if self.is_product else [list(r) for r in self.grid_KJ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KnobSpace":
        """The space that `to_dict` described. Knobs come from the registry; nothing named in the data is imported.

        Raises:
            SpaceError, GridError: the data is damaged, or describes no space.
            UnknownNameError, PluginError: a knob is not installed here, or its plugin is broken.
            AdapterError: a knob no longer does what it did; the message names the options that changed.
        """
        try:
            saved: SavedSpace = fit(data, SavedSpace)
        except ValueError as error:
            raise SpaceError(f"The saved space is damaged: {error}.") from None
        items = [item.model_dump(exclude_unset=True) for item in saved.knobs]
        knobs = [resolve_saved(item) for item in items]
        space = cls.of(*knobs, order=[knob.name for knob in knobs])
        for position, (knob, item) in enumerate(zip(knobs, items, strict=True)):
            check_identity(knob, item, position)
        rows = None if saved.grid is None else [tuple(row) for row in saved.grid]
        if rows is not None:
            if bad := [list(row) for row in rows if row not in space._row]:
                sizes = [len(knob.options) for knob in knobs]
                raise SpaceError(
                    f"The saved grid is damaged: it holds {reprlib.repr(bad[0])}, and the knobs have {sizes} values."
                )
            space = space.select(space._row[row] for row in rows)
        return cls(space.knobs, space.grid_KJ, saved.order)

    def fingerprint(self) -> str:
        """64 hex digits, equal exactly where the same options, order and knob versions behave the same (all ranks of a run)."""
        knobs = json.dumps([knob_identity(knob, position) for position, knob in enumerate(self.knobs)], sort_keys=True)
        text = json.dumps([self.order, self.grid_KJ, hashlib.sha256(knobs.encode()).hexdigest()])
        return hashlib.sha256(text.encode()).hexdigest()

    def facts(self) -> dict[str, str]:
        """What the processes of a run compare: the chain, where each knob comes from, and what its options do."""
        items = [knob_identity(knob, position) for position, knob in enumerate(self.knobs)]
        knobs = {f"the knob {item['name']}": f"{origin(item)} (behaviour {item['hash']})" for item in items}
        return {"their space": repr(self), **knobs, "the options": self.fingerprint()[:16]}

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Cached, because spaces are keys of caches that are read at every token."""
        return hash((self.knobs, self.grid_KJ, self.order))

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: another process hashes strings differently."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __repr__(self) -> str:
        chain = " -> ".join(f"{k.name}[{', '.join(f'{v:g}' for v in k.options)}]" for k in self.knobs)
        kind = "full product" if self.is_product else "chosen subset"
        return f"KnobSpace({chain}; K={self.K} options, {kind}, order={self.order})"


def _place(knob: DecodingKnob, value: float) -> int | None:
    """Where a value stands in a knob's grid."""
    return next((i for i, known in enumerate(knob.options) if math.isclose(known, value, abs_tol=1e-12)), None)


def _ordered(knobs: list[DecodingKnob], order: str | Sequence[str]) -> tuple[tuple[DecodingKnob, ...], str]:
    by_name = {knob.name: knob for knob in knobs}
    if not isinstance(order, str | list | tuple):
        raise SpaceError(
            f"order={order!r} is neither an engine's name nor a list of knob names. Write e.g. order='transformers'."
        )
    if not isinstance(order, str):
        if sorted(map(str, order)) != sorted(by_name):
            raise SpaceError(f"The order {list(order)} must name each of the knobs {sorted(by_name)} once.")
        return tuple(by_name[name] for name in order), "given"
    if order not in ORDERS:
        raise SpaceError(
            f"There is no order {order!r}. {did_you_mean(order, ORDERS)} Or list the knob names in the order you mean."
        )
    return tuple(sorted(knobs, key=lambda knob: ORDERS[order].index(knob.stage))), order


def short(value: float) -> str:
    """A value as people write it, and in full where that would be another one."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
