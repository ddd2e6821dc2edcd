"""What one call of `generate` has chosen so far: values for every row and column of its sequences, and the policy's state.

Columns, not steps, because rejected drafts, chunked prompts and runs without a cache visit columns again.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from latentknobs.engines.transformers.caches import cache_in, cache_length
from latentknobs.engines.transformers.second import SECOND, LeftPadded, SecondReader
from latentknobs.errors import DecodingError
from latentknobs.knobs.context import Observation
from latentknobs.policies import Choice, Policy, State, reads, remembers

TABLES = ("value_BLJ", "option_BL", "ids_BL")


class Ledger:
    """The columns of one batch of sequences.

    Args:
        policy: the policy that chooses.
        prompt_length: columns of the prompt.
        rows_per_key: rows that share the uniforms of one request (the beams of a prompt), 1 elsewhere.
        mask_BP: prompt padding, for knobs that read earlier tokens.
        keys_B: ids of the rows for the uniforms; None counts them.
    """

    def __init__(
        self, policy: Policy, prompt_length: int, rows_per_key: int = 1, mask_BP: Tensor | None = None, keys_B: Any = None,
    ) -> None:  # fmt: skip
        self.policy, self.needs, self._remembers = policy, reads(policy), remembers(policy)
        self.prompt_length = self.columns = prompt_length
        self.rows_per_key, self.mask_BP = rows_per_key, mask_BP
        self.keys_B = None if keys_B is None else torch.as_tensor(keys_B)
        self.max_new_tokens: int | None = None  # the budgets that a policy may read; None where it is not known
        self.samples = 1
        self.sampling = False  # whether tokens are drawn here rather than by `generate`
        self.is_plain = True  # False for modes in which a row is not a request: beams
        self.is_one_call = False  # whether all forward calls are those of one `generate`
        self.value_BLJ: Tensor | None = None
        self.option_BL: Tensor | None = None
        self.ids_BL: Tensor | None = None
        self.prompt_BP: Tensor | None = None  # ids of the prompt, where they are known: a cache may hide them from forward calls
        self.second_prompt: LeftPadded | None = None  # what second logits are read after; None: the prompts' last tokens
        self.second: SecondReader | None = None
        self.cache: Any = None
        self._row_keys_B: Tensor | None = None
        self._states: dict[int, State] = {}  # by column: of those of the newest forward call
        self._seen = 0  # columns behind the cache, for caches that cannot tell
        self._reordering: Any = None

    def of_rows(self, row_R: Tensor) -> "Ledger":
        """What is known of some rows of sequences that are one row per request, for a batch of their own.

        Second logits start again: their reader reads the response so far once more.
        """
        mask_BP, keys_B = self.mask_BP, self._row_keys_B
        keys_R = row_R if keys_B is None else keys_B[row_R]
        ledger = Ledger(self.policy, self.prompt_length, 1, None if mask_BP is None else mask_BP[row_R], keys_R)
        for name in (*TABLES, "prompt_BP"):
            table_BL = getattr(self, name)
            setattr(ledger, name, None if table_BL is None else table_BL[row_R])
        ledger.second_prompt = None if self.second_prompt is None else self.second_prompt.rows(row_R)
        ledger._states = {column: self.policy.select(row_R, state) for column, state in self._states.items()}
        for name in ("columns", "is_one_call", "_seen", "max_new_tokens", "samples"):
            setattr(ledger, name, getattr(self, name))
        return ledger

    def before(self, kwargs: dict[str, Any], width: int) -> int:
        """How many columns came before those of a forward call that has just run."""
        if self.sampling and self._seen and kwargs.get("use_cache"):  # no drafts: nothing is ever taken back
            first, self._seen = self._seen, self._seen + width
            return first
        if cache_in(kwargs) is None:
            return 0
        length = cache_length(kwargs)
        # A static cache keeps its length on the device; within one call, counting is as good and the host need not wait.
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
            wanted = (rows // self.rows_per_key,)
            if self.keys_B is not None and (found := tuple(self.keys_B.shape)) != wanted:
                raise DecodingError(
                    f"`rows` of the attached policy have shape {found}, and the batch {wanted}. Give an id for each row, or None."
                )
            self._row_keys_B = request_B if self.keys_B is None else self.keys_B.to(device)[request_B]
        return self._row_keys_B

    def choice_at(self, column: int, rows: int) -> Choice | None:
        """The choice for the token of one column; None where there is none for so many rows."""
        if self.value_BLJ is None or len(self.value_BLJ) != rows:
            return None
        return Choice(self.value_BLJ[:, column], None if self.option_BL is None else self.option_BL[:, column])

    def remember(self, column: int, choice: Choice) -> None:
        """Writes the choice for the token of one column, and the state that follows from it."""
        self.value_BLJ = _grown(self.value_BLJ, column, choice.value_NJ)
        self.value_BLJ[:, column] = choice.value_NJ
        if choice.option_N is not None:
            self.option_BL = _grown(self.option_BL, column, choice.option_N)
            self.option_BL[:, column] = choice.option_N
        if self._remembers:
            self._states[column] = choice.state
        self.columns = column + 1

    def state_at(self, column: int, token_B: Tensor) -> State:
        """The policy's state before it chooses for the token of one column; `token_B` are those of the column before."""
        if not self._remembers:
            return None
        if column == self.prompt_length:
            return self.policy.start(len(token_B), token_B.device)
        if column - 1 not in self._states:
            raise DecodingError(
                f"The policy {type(self.policy).__name__} remembers what came before, and column {column - 1} was not decoded by "
                "it. Generate with use_cache=True and from the prompt on."
            )
        return self.policy.observe(token_B, self._states[column - 1])

    def forget_states(self, first: int) -> None:
        """Before the columns of a forward call, the first of which is for the token of column `first`."""
        self._states = {column: state for column, state in self._states.items() if column == first - 1}

    def remember_ids(self, first: int, ids_BS: Tensor) -> None:
        """Writes the token ids of some columns (-1: not known)."""
        self.ids_BL = _grown(self.ids_BL, first + ids_BS.shape[1], ids_BS[:, 0])
        self.ids_BL[:, first : first + ids_BS.shape[1]] = ids_BS

    def contexts(self, model: Callable[..., Any], first: int, columns: range, ids_BS: Tensor) -> list[Observation | None]:
        """What the policy and its knobs read of the token after each column of the response, beside hidden states and logits.

        Args:
            model: the LM without the policy, for second logits.
            first: where the columns of the forward call begin; `columns` are its last ones, `ids_BS` all of its ids.
        """
        if not self.needs:
            return [None] * len(columns)
        mask_BP, rows = self.mask_BP, len(ids_BS)
        if self.ids_BL is None and self.prompt_BP is not None:
            self.remember_ids(0, repeat(self.prompt_BP, "b p -> (b n) p", n=rows // len(self.prompt_BP)))
        self.remember_ids(first, ids_BS)
        assert self.ids_BL is not None
        if mask_BP is not None:
            mask_BP = repeat(mask_BP, "b p -> (b n) p", n=rows // len(mask_BP))
        begin, second = self.prompt_length - 1, {}  # the column that the first token of the response follows
        if SECOND in self.needs and columns.stop > begin:
            wanted = range(max(columns.start, begin), columns.stop)
            second_BSV = self._second(model, first, columns.stop, len(wanted))
            second = dict(zip(wanted, second_BSV.unbind(1), strict=True))

        def one(column: int) -> Observation:
            assert self.ids_BL is not None
            seen = Observation.of_step(self.ids_BL[:, : column + 1], self.prompt_length, mask_BP, second.get(column))
            return seen.budgeted(self.max_new_tokens, self.samples, self.needs)

        return [one(column) if column >= begin else None for column in columns]

    def _second(self, model: Callable[..., Any], first: int, stop: int, last: int) -> Tensor:
        """(B, last, V) second logits after the last columns before `stop`; columns before `first` are those of earlier calls."""
        assert self.ids_BL is not None
        self.second = self.second or SecondReader(model)
        prompt = self.second_prompt or LeftPadded(self.ids_BL[:, self.prompt_length - 1 : self.prompt_length])
        prompt = prompt.repeated(len(self.ids_BL))
        ids_BS = torch.cat([prompt.ids_BP.to(self.ids_BL), self.ids_BL[:, self.prompt_length : stop]], 1)
        known = prompt.ids_BP.shape[1] + first - self.prompt_length if first >= self.prompt_length else 0
        return self.second.logits(ids_BS, known, last, prompt.mask_BP)

    def follow(self, cache: Any) -> None:
        """Reorders rows whenever the cache does (beam search)."""
        if self._reordering is cache or not hasattr(cache, "reorder_cache"):
            return
        self.release()
        original = cache.reorder_cache

        def reorder_cache(beam_idx: Tensor) -> None:
            """The cache's own, and the same for what was chosen."""
            original(beam_idx)
            for name in TABLES:
                if (table_BL := getattr(self, name)) is not None:
                    setattr(self, name, table_BL.index_select(0, beam_idx.to(table_BL.device)))
            self._states = {column: self.policy.select(beam_idx, state) for column, state in self._states.items()}
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
    """The table with room for a column; its rows and whatever lies behind a column are those of `like_B`."""
    if table_BL is not None and len(table_BL) == len(like_B) and column < table_BL.shape[1]:
        return table_BL
    rows, *rest = like_B.shape
    old = table_BL if table_BL is not None and len(table_BL) == rows else like_B.new_zeros(rows, 0, *rest)
    return torch.cat([old, old.new_zeros(rows, max(64, column + 1), *rest)], 1)
