"""Second logits, for guidance: the same frozen model reads the response without its prompt.

As in transformers' UnbatchedClassifierFreeGuidanceLogitsProcessor (Sanchez et al. 2023, arXiv 2306.17806), that text begins
with the last token of the prompt, because a model needs a token to begin with. No row of it has padding on its left.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from latentknobs.engines.transformers.caches import cache_in, cache_name

SECOND = "second_NV"


class SecondReader:
    """The second reading of unfinished sequences, with a cache of its own: each token is read once, by all rows together."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self._cache: Any = None
        self._name = ""  # of the model's argument and output that hold it
        self._cached = 0  # columns behind it

    def logits(self, ids_BS: Tensor, known: int, last: int) -> Tensor:
        """(B, last, V) second logits after each of the last columns.

        Args:
            ids_BS: (B, S) the last prompt token and the response so far.
            known: columns of it that are the same as in the call before.
        """
        if known != self._cached:  # a draft was rejected, or the first reading has no cache either: begin anew
            self._cache, self._cached = None, 0
        past = {} if self._cache is None else {self._name: self._cache}
        # No mask: there is nothing to hide, and models read a mask on the host, which then waits for a GPU.
        output = self.model(input_ids=ids_BS[:, self._cached :], use_cache=True, return_dict=True, **past)
        self._name, self._cache = cache_name(output) or "", cache_in(output)
        self._cached = 0 if self._cache is None else ids_BS.shape[1]
        logits_BSV: Tensor = output.logits[:, -last:]
        return logits_BSV

    def reorder(self, row_B: Tensor) -> None:
        """Follows the rows of a beam search."""
        if self._cache is not None:
            self._cache.reorder_cache(row_B)
