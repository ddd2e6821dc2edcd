"""What one call of `generate` has chosen so far: an option for every row and column of its sequences.

Columns, not steps, because rejected drafts, chunked prompts and runs without a cache visit columns again.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from latentknobs.engines.transformers.caches import cache_in, cache_length
from latentknobs.engines.transformers.second import SECOND, SecondReader
from latentknobs.engines.transformers.uniforms import OPTIONS, TOKENS, uniforms
from latentknobs.knobs.context import Context

AHEAD = 64  # positions whose uniforms are made at once


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
        self._row_keys_B: Tensor | None = None
        self._uniform_P2B: Tensor | None = None
        self._uniforms_of: Any = None
        self.sampling = False  # whether tokens are chosen here rather than by `generate`
        self.is_plain = True  # False for modes in which a row is no request: beams
        self.option_BL: Tensor | None = None
        self.ids_BL: Tensor | None = None
        self.prompt_BP: Tensor | None = None  # its ids, where they are known: a cache may hide them from the forward calls
        self.second: SecondReader | None = None
        self.cache: Any = None
        self.is_one_call = False  # whether all forward calls are those of one `generate`
        self._seen = 0  # columns behind the cache, for caches that cannot tell
        self._reordering: Any = None

    def of_rows(self, row_R: Tensor) -> "Ledger":
        """What is known of some rows of sequences that are one row per request, for a batch of their own.

        Second logits begin anew: their reader reads the response so far once more.
        """
        mask_BP, keys_B = self.mask_BP, self._row_keys_B
        made = Ledger(
            self.prompt_length, 1, None if mask_BP is None else mask_BP[row_R], row_R if keys_B is None else keys_B[row_R]
        )
        for name in ("option_BL", "ids_BL", "prompt_BP"):
            table_BL = getattr(self, name)
            setattr(made, name, None if table_BL is None else table_BL[row_R])
        made.columns, made.is_one_call, made._seen = self.columns, self.is_one_call, self._seen
        return made

    def before(self, kwargs: dict[str, Any], width: int) -> int:
        """How many columns came before those of a forward call that has just run."""
        if self.sampling and self._seen and kwargs.get("use_cache"):  # no drafts: nothing is ever taken back
            first, self._seen = self._seen, self._seen + width
            return first
        if cache_in(kwargs) is None:
            return 0
        length = cache_length(kwargs)
        # A static cache keeps its length on the device; within one call, counting is as good and nobody has to wait.
        if length is None or (isinstance(length, Tensor) and self.is_one_call and self._seen):
            first = self._seen
        else:
            first = max(int(length) - width, 0)  # the cache holds this call's columns already
        self._seen = first + width
        return first

    def keys(self, rows: int, device: torch.device) -> Tensor:
        """(B,) whose uniforms each row uses."""
        if self._row_keys_B is None or len(self._row_keys_B) != rows:
            request_B = torch.arange(rows, device=device) // self.rows_per_key
            self._row_keys_B = request_B if self.keys_B is None else self.keys_B.to(device)[request_B]
        return self._row_keys_B

    def uniforms(self, seed: int, position: int, rows: int, device: torch.device) -> Tensor:
        """(2, B) those of the options and those of the tokens at one position of the response."""
        block, place = divmod(position, AHEAD)
        key_B = self.keys(rows, device)
        if self._uniform_P2B is None or self._uniforms_of != (seed, block, rows, device):
            position_N = torch.arange(block * AHEAD, (block + 1) * AHEAD, device=device).repeat_interleave(rows)
            made = [uniforms(seed, stream, key_B.repeat(AHEAD), position_N).view(AHEAD, rows) for stream in (OPTIONS, TOKENS)]
            self._uniform_P2B, self._uniforms_of = torch.stack(made, 1), (seed, block, rows, device)
        return self._uniform_P2B[place]

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

    def contexts(
        self, model: Callable[..., Any], needs: Collection[str], first: int, columns: range, ids_BS: Tensor
    ) -> list[Context | None]:
        """What knobs read of the token after each column of the response, where they read anything.

        Args:
            model: the LM without the policy, for second logits.
            first: where the columns of the forward call begin; `columns` are its last ones, `ids_BS` all of its ids.
        """
        if not needs:
            return [None] * len(columns)
        mask_BP, rows = self.mask_BP, len(ids_BS)
        if self.ids_BL is None and self.prompt_BP is not None:
            self.remember_ids(0, self.prompt_BP.repeat_interleave(rows // len(self.prompt_BP), 0))
        self.remember_ids(first, ids_BS)
        assert self.ids_BL is not None
        if mask_BP is not None:
            mask_BP = mask_BP.repeat_interleave(rows // len(mask_BP), 0)
        begin, second = self.prompt_length - 1, {}  # where the second text begins
        if SECOND in needs and columns.stop > begin:
            self.second = self.second or SecondReader(model)
            asked = range(max(columns.start, begin), columns.stop)
            second_BSV = self.second.logits(self.ids_BL[:, begin : columns.stop], max(first - begin, 0), len(asked))
            second = dict(zip(asked, second_BSV.unbind(1), strict=True))
        of_step, ids_BL, width = Context.of_step, self.ids_BL, self.prompt_length
        return [of_step(ids_BL[:, : c + 1], width, mask_BP, second.get(c)) if c >= begin else None for c in columns]

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
            if self.second is not None:
                self.second.reorder(beam_idx)

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
