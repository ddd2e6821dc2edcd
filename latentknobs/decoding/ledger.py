"""What one call of `generate` has chosen so far: an option for every row and column of its sequences.

Columns, not steps, because rejected drafts, chunked prompts and runs without a cache visit columns again.
"""

from typing import Any

import torch
from torch import Tensor


class Ledger:
    """The columns of one batch of sequences.

    Args:
        prompt_length: columns of the prompt.
        rows_per_key: rows that share the uniforms of one request (the beams of a prompt), 1 elsewhere.
        mask_BP: prompt padding, for knobs that read earlier tokens.
        keys_B: ids of the rows for the uniforms; None counts them.
    """

    def __init__(
        self, prompt_length: int, rows_per_key: int = 1, mask_BP: Tensor | None = None, keys_B: Tensor | None = None
    ) -> None:
        self.prompt_length = self.columns = prompt_length
        self.rows_per_key = rows_per_key
        self.mask_BP = mask_BP
        self.keys_B = keys_B
        self.sampling = False  # whether tokens are chosen here rather than by `generate`
        self.is_plain = True  # False for modes in which a row is no request: beams
        self.option_BL: Tensor | None = None
        self.ids_BL: Tensor | None = None
        self._seen = 0  # columns behind caches that cannot tell their length
        self._reordering: Any = None

    def before(self, kwargs: dict[str, Any], width: int) -> int:
        """How many columns came before those of a forward call that has just run."""
        cache = kwargs.get("past_key_values")
        if cache is not None and hasattr(cache, "get_seq_length") and kwargs.get("cache_params") is None:
            return max(int(cache.get_seq_length()) - width, 0)  # the cache holds this call's columns already
        if kwargs.get("cache_params") is not None:
            first, self._seen = self._seen, self._seen + width
            return first
        return 0

    def keys(self, rows: int, device: torch.device) -> Tensor:
        """(B,) whose uniforms each row uses."""
        request_B = torch.arange(rows, device=device) // self.rows_per_key
        return request_B if self.keys_B is None else self.keys_B.to(device)[request_B]

    def option_at(self, column: int, rows: int, device: torch.device) -> Tensor:
        """(B,) options of the tokens of one column; 0 where none was chosen yet."""
        if self.option_BL is None or len(self.option_BL) != rows:
            self.option_BL = torch.zeros(rows, column + 64, dtype=torch.long, device=device)
        return self.option_BL[:, column]

    def remember(self, column: int, option_B: Tensor) -> None:
        """Writes the options of one column."""
        self.option_BL = _grown(self.option_BL, column, option_B)
        self.option_BL[:, column] = option_B
        self.columns = column + 1

    def remember_ids(self, first: int, ids_BS: Tensor) -> None:
        """Writes the token ids of some columns (-1: not known)."""
        self.ids_BL = _grown(self.ids_BL, first + ids_BS.shape[1], ids_BS[:, 0])
        self.ids_BL[:, first : first + ids_BS.shape[1]] = ids_BS

    def follow(self, cache: Any) -> None:
        """Reorders rows whenever the cache does (beam search)."""
        if self._reordering is cache or not hasattr(cache, "reorder_cache"):
            return
        self.release()
        original = cache.reorder_cache

        def reorder_cache(beam_idx: Tensor) -> None:
            original(beam_idx)
            for name in ("option_BL", "ids_BL"):
                if (table_BL := getattr(self, name)) is not None:
                    setattr(self, name, table_BL.index_select(0, beam_idx.to(table_BL.device)))

        cache.reorder_cache = reorder_cache
        self._reordering = cache

    def release(self) -> None:
        """Gives a followed cache back as it was."""
        if self._reordering is not None:
            del self._reordering.reorder_cache
            self._reordering = None


def _grown(table_BL: Tensor | None, column: int, like_B: Tensor) -> Tensor:
    """The table with room for a column."""
    if table_BL is not None and len(table_BL) == len(like_B) and column < table_BL.shape[1]:
        return table_BL
    rows = len(like_B)
    old = table_BL if table_BL is not None and len(table_BL) == rows else like_B.new_zeros(rows, 0, dtype=torch.long)
    return torch.cat([old, old.new_zeros(rows, max(64, column + 1))], 1)
