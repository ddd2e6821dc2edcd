"""Second logits, for guidance: the same frozen model reads the response after another prompt.

That is the prompt without its evidence (`negative_prompt_ids` of `generate`), padded on the left and with a cache of its own; or
else the last token of the prompt, because a model needs a token to begin with. Both as in transformers'
UnbatchedClassifierFreeGuidanceLogitsProcessor (Sanchez et al. 2023, arXiv 2306.17806).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentknobs.engines.transformers.caches import cache_in, cache_name

SECOND = "second_NV"


class LeftPadded(NamedTuple):
    """B prompts in one batch."""

    ids_BP: Tensor  # (B, P) token ids
    mask_BP: Tensor | None = None  # (B, P) 0 at padding on the left; None where there is none

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> "LeftPadded":
        """Prompts of any lengths."""
        longest = max(map(len, prompts))
        ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return cls(torch.tensor(ids, device=device), torch.tensor(mask, device=device))

    def rows(self, row_R: Tensor) -> "LeftPadded":
        """Those of some rows."""
        return LeftPadded(self.ids_BP[row_R], None if self.mask_BP is None else self.mask_BP[row_R])

    def repeated(self, rows: int) -> "LeftPadded":
        """Each for as many neighbouring rows as there are copies of a prompt among `rows`."""
        n = rows // len(self.ids_BP)
        return self if n == 1 else self.rows(torch.arange(rows, device=self.ids_BP.device) // n)

    def lists(self) -> list[list[int]]:
        """The ids of each row without padding."""
        kept_BP = torch.ones_like(self.ids_BP) if self.mask_BP is None else self.mask_BP
        return [ids_P[kept_P.bool()].tolist() for ids_P, kept_P in zip(self.ids_BP, kept_BP, strict=True)]


class SecondReader:
    """The second reading of unfinished sequences, with a cache of its own: each token is read once, by all rows together."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self._cache: Any = None
        self._name = ""  # of the model's argument and output that hold it
        self._cached = 0  # columns behind it

    def logits(self, ids_BS: Tensor, known: int, last: int, mask_BP: Tensor | None = None) -> Tensor:
        """(B, last, V) second logits after each of the last columns.

        Args:
            ids_BS: (B, S) the second prompt and the response so far.
            known: columns of it that are the same as in the call before.
            mask_BP: (B, P) 0 at the padding of the second prompt, if any.
        """
        if known != self._cached:  # a draft was rejected, or the first reading has no cache either: start again
            self._cache, self._cached = None, 0
        more = {} if self._cache is None else {self._name: self._cache}
        # Without padding no mask: there is nothing to hide, and models read a mask on the host, which then waits for a GPU.
        if mask_BP is not None:
            mask_BS = torch.nn.functional.pad(mask_BP, (0, ids_BS.shape[1] - mask_BP.shape[1]), value=1)
            more |= {"attention_mask": mask_BS, "position_ids": (mask_BS.cumsum(-1) - 1).clamp(min=0)[:, self._cached :]}
        output = self.model(input_ids=ids_BS[:, self._cached :], use_cache=True, return_dict=True, **more)
        self._name, self._cache = cache_name(output) or "", cache_in(output)
        self._cached = 0 if self._cache is None else ids_BS.shape[1]
        logits_BSV: Tensor = output.logits[:, -last:]
        return logits_BSV

    def reorder(self, row_B: Tensor) -> None:
        """Follows the rows of a beam search."""
        if self._cache is not None:
            self._cache.reorder_cache(row_B)
