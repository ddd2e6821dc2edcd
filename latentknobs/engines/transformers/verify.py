"""Holds one call of `generate` to what the policy chose, so that a policy that does not act is an error.

Every step sees the tokens of the step before as its input: they must be those that the hook drew. Positions must advance by
one, and at the end there must be a choice for every token. It costs one comparison of (B,) ids a step; on a GPU the verdict of
the steps is read once, at the end.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from latentknobs.engines.transformers.finished import Call
from latentknobs.engines.transformers.ledger import Ledger
from latentknobs.engines.transformers.versions import versions
from latentknobs.errors import DecodingError


class Verifier:
    """The checks of one call.

    Args:
        call: what is known of it; its ends and padding are filled in before the first step.
        prompt_length: columns of the prompt.
        is_plain: whether rows are sequences and nothing is taken back (no beams, no drafts).
    """

    def __init__(self, call: Call, prompt_length: int, is_plain: bool) -> None:
        self.call, self.prompt_length, self.is_plain = call, prompt_length, is_plain
        self._columns: int | None = None
        self._drawn_B: Tensor | None = None
        self._before_B: Tensor | None = None  # ids of the step before
        self._is_wrong: Tensor | None = None  # (), on a GPU

    def has_begun(self) -> bool:
        """Whether a step has been seen."""
        return self._columns is not None

    def step(self, columns: int, ids_B: Tensor) -> None:
        """Before the choices of a step: DecodingError if the newest token is not the one drawn, or not in its place.

        Args:
            columns: of the sequence, up to and with that token.
            ids_B: (B,) that token.
        """
        before, self._columns = self._columns, columns
        if not self.is_plain or before is None:
            return
        is_prompt = before < columns <= self.prompt_length  # chunks of any width
        if not is_prompt and columns != before + 1:
            raise not_of_policy(
                f"After {before} tokens of the sequence the model was called for token {columns}, not {before + 1}"
            )
        self._compare(ids_B)

    def drew(self, token_B: Tensor) -> None:
        """The tokens (B,) that the hook has drawn."""
        self._drawn_B = token_B

    def end(self, sequences_BL: Tensor, tokens: int, choices: int) -> None:
        """After the call: DecodingError if what `generate` returned does not fit the choices.

        Args:
            tokens: length of the responses.
            choices: positions of the responses for which the policy has chosen.
        """
        if choices < tokens or (self.is_plain and choices != tokens):
            what = "did not act at all" if choices <= 0 else f"chose for {choices} tokens"
            raise not_of_policy(f"generate returned {tokens} new tokens, and the attached policy {what}")
        if self.is_plain and tokens:
            self._compare(sequences_BL[:, -1])
        if self._is_wrong is not None and bool(self._is_wrong):
            raise not_of_policy("A sequence holds other tokens than those that the attached policy drew")

    def _compare(self, ids_B: Tensor) -> None:
        before_B, drawn_B, self._before_B, self._drawn_B = self._before_B, self._drawn_B, ids_B, None
        if drawn_B is None or len(drawn_B) != len(ids_B) or (ids_B.device.type == "cpu" and torch.equal(ids_B, drawn_B)):
            return
        differs_B, may_be_over_B = ids_B != drawn_B, self._is_any_of(ids_B, self.call.padding or self.call.ends)
        if not self.call.may_stop:
            may_be_over_B &= before_B is not None and self._is_any_of(before_B, (*self.call.padding, *self.call.ends))
        is_wrong_B = differs_B & ~may_be_over_B
        if ids_B.device.type != "cpu":
            self._is_wrong = is_wrong_B.any() if self._is_wrong is None else self._is_wrong | is_wrong_B.any()
        elif bool(is_wrong_B.any()):
            row = int(is_wrong_B.nonzero()[0])
            drawn, found = int(drawn_B[row]), int(ids_B[row])
            raise not_of_policy(f"For row {row} the attached policy drew token {drawn}, and the sequence holds {found}")

    def _is_any_of(self, ids_B: Tensor, tokens: Collection[int]) -> Tensor:
        return torch.isin(ids_B, _on_device(tuple(tokens), ids_B.device, ids_B.dtype))


@lru_cache(maxsize=64)
def _on_device(tokens: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Ids that every step compares with, sent once: to send is to wait."""
    return torch.tensor(tokens, device=device, dtype=dtype)


def not_of_policy(fact: str) -> DecodingError:
    """The error for output that is not the policy's."""
    return DecodingError(
        f"{fact}: the output of this call is not the policy's ({versions()}). Another hook, a wrapper or an untested version "
        "changes what generate does. Remove it, or detach the policy."
    )


def sequences_of(returned: Any) -> Tensor | None:
    """(B, L) ids among what `generate` returned; None where it returned something else (a `custom_generate` may)."""
    found = returned if isinstance(returned, Tensor) else getattr(returned, "sequences", None)
    return found if isinstance(found, Tensor) and found.dim() == 2 else None


class Running(threading.local):
    """What one thread is doing with the model: hooks run in the thread that called it."""

    hidden: Tensor | None = None
    ledger: Ledger | None = None
    kept: Ledger | None = None  # what the next call of `generate` goes on with
    verifier: Verifier | None = None  # of the `generate` that is running
    may_sample = False
    is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block in which the model says what it says without a policy."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False
