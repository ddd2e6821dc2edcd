"""One reading of each distinct prompt, whatever the number of its copies, and however many policies answer it.

The key-value cache of all but the last token of a prompt is computed once and repeated; each copy reads the last token itself,
because policies choose there. Tokens, options and records are those of copies that read everything: up to the rounding of a
matrix product with another number of rows, and for models in which a row does not depend on the other rows of its batch.

Copies read their prompts themselves, which is always right, where the cache cannot be repeated: static, quantized, offloaded, a
state (Mamba and hybrids), none at all.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from latentknobs.engines.transformers.caches import cache_in, cache_name
from latentknobs.engines.transformers.frozen import input_device, output_embeddings
from latentknobs.engines.transformers.settings import announce, rollout_settings
from latentknobs.engines.transformers.wrappers import layers_of

ROOM = 2  # a layer that is full grows by half of its columns
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)  # exactly these: subclasses hold more than keys and values
KEPT = 2**30  # bytes of caches that are kept for the next policy; the oldest go first


class PromptReader:
    """The prompts of a model's batches. A batch that comes again, for another policy, is not read again."""

    def __init__(self, model: Any) -> None:
        self.model = layers_of(model)[-1]
        self._kept: OrderedDict[Any, tuple[str, DynamicCache]] = OrderedDict()
        self._is_refused = False

    @property
    def device(self) -> torch.device:
        """Where the token ids go."""
        return input_device(self.model)

    def read(self, ids_BP: Tensor, mask_BP: Tensor) -> dict[str, Any]:
        """The argument of `generate`, or of the model, that holds the cache of all columns but the last, if any.

        Args:
            ids_BP, mask_BP: prompts padded on the left.
        """
        if self._is_refused or ids_BP.shape[1] < 2:
            return {}
        unique_U2P, row_B = torch.stack([ids_BP, mask_BP], 1).unique(dim=0, return_inverse=True)
        key = (tuple(unique_U2P.shape), hash(unique_U2P.cpu().numpy().tobytes()))
        if key not in self._kept:
            name, cache = self._read(*unique_U2P.unbind(1))
            if not can_repeat(cache) or cache.get_seq_length() != ids_BP.shape[1] - 1:  # GPT's stays empty, CPM-Ant's has more
                self._is_refused = True
                announce(
                    f"Each copy of a prompt is read again: {type(self.model).__name__} keeps a {type(cache).__name__} here, "
                    "which cannot be repeated."
                )
                return {}
            self._kept[key] = (name, cache)
        self._kept.move_to_end(key)
        name, cache = self._kept[key]
        while self._kept and sum(size_of(one) for _, one in self._kept.values()) > KEPT:
            self._kept.popitem(last=False)
        return {name: repeated(cache, row_B)}

    def _read(self, ids_UP: Tensor, mask_UP: Tensor) -> tuple[str, Any]:
        """One token of `generate`, which knows how each family counts positions; that token is not used."""
        before_UP, mask_UP, is_single_U = ids_UP[:, :-1].clone(), mask_UP[:, :-1].clone(), mask_UP[:, -2] == 0
        # A prompt of one token is nothing but padding here. Some models make that NaN, so one column of it is read as text.
        mask_UP[is_single_U, -1], before_UP[is_single_U, -1] = 1, ids_UP[is_single_U, -1]
        ends = set(before_UP[:, -1].tolist())
        pad = next(token for token in range(len(ends) + 1) if token not in ends)  # generate warns of padding at the end
        with rollout_settings(self.model), _rows_together(self.model):
            output = self.model.generate(
                input_ids=before_UP, attention_mask=mask_UP, max_new_tokens=1, pad_token_id=pad, return_dict_in_generate=True
            )
        return cache_name(output) or "", cache_in(output)


@contextmanager
def _rows_together(model: Any) -> Iterator[None]:
    """Last states of many prompts are a view with gaps, for which torch copies the output embeddings once for each prompt."""
    handle = output_embeddings(model).register_forward_pre_hook(
        lambda module, args: (args[0].contiguous(), *args[1:]) if args else None
    )
    try:
        yield
    finally:
        handle.remove()


def can_repeat(cache: Any) -> bool:
    """Whether the rows of a cache can be selected and repeated."""
    return (
        type(cache) is DynamicCache
        and not getattr(cache, "offloading", False)
        and all(type(layer) in (*LAYERS, GrowingLayer) for layer in cache.layers)
    )


def repeated(cache: DynamicCache, row_B: Tensor) -> DynamicCache:
    """A cache whose rows are rows of another, which stays as it is."""
    found = copy(cache)
    found.layers = [GrowingLayer.of(layer) for layer in cache.layers]
    found.batch_select_indices(row_B)
    return found


class GrowingLayer(DynamicLayer):
    """Keys and values with room for tokens to come: those of a step are written into it, where a `DynamicLayer` copies all."""

    keys: Tensor
    values: Tensor
    _room: tuple[Tensor, ...] = ()  # whose first columns are `keys` and `values`

    @classmethod
    def of(cls, layer: Any) -> Any:
        """The same layer with room; a copy of a layer of another kind, which already has a bound."""
        if type(layer) is not DynamicLayer:
            return copy(layer)
        found = cls()
        found.__dict__.update(vars(layer))
        return found

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See `DynamicLayer.update`."""
        length, width = self.keys.shape[-2], key_states.shape[-2]
        fits = self._room and self._room[0].shape[-2] >= length + width and self._room[0].data_ptr() == self.keys.data_ptr()
        if not fits:
            self._room = tuple(_with_room(part, width + length // ROOM) for part in (self.keys, self.values))
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., length : length + width, :] = new
        self.keys, self.values = (room[..., : length + width, :] for room in self._room)
        return self.keys, self.values


def _with_room(part: Tensor, columns: int) -> Tensor:
    room = part.new_empty(*part.shape[:-2], part.shape[-2] + columns, part.shape[-1])
    room[..., : part.shape[-2], :] = part
    return room


def size_of(cache: DynamicCache) -> int:
    """Bytes of keys and values."""
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values) if part is not None)
