"""Segments: runs of response tokens that share one option, and how a level is written.

A segmenter decides for each row and position whether a new segment begins with this token. It may read the position and the
token before, never a later one, so that training and decoding cut at the same places.
Position 0 always begins a segment.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from latentknobs.errors import ConfigError, did_you_mean
from latentknobs.tensors import any_or_unknown

FORMS = ("token", "sequence", "every:N", "delimiter:CHARS")


class Segmenter(ABC):
    """Says where segments begin."""

    @property
    @abstractmethod
    def level(self) -> str:
        """How a user writes this segmenter, e.g. `every:8`."""

    @property
    def is_token_level(self) -> bool:
        """Whether every token begins a segment, so that no choice outlives its token."""
        return self.level == "token"

    @abstractmethod
    def _begins(self, position_N: Tensor, previous_N: Tensor) -> Tensor: ...

    def begins(self, position_N: Tensor, previous_N: Tensor) -> Tensor:
        """Whether a segment begins with the response token at a position (from 0), by the token before it.

        Both arguments and the answer have one shape; at position 0 the token before is the prompt's last.
        """
        return (position_N == 0) | self._begins(position_N, previous_N)

    def at(self, position: int, previous_B: Tensor) -> bool | Tensor:
        """Which rows begin a segment at one position: all, none, or those of a (B,) mask. Never waits for a GPU."""
        if position == 0 or self.is_token_level:
            return True
        mask_B = self._begins(torch.full_like(previous_B, position), previous_B)
        return mask_B if any_or_unknown(mask_B) else False

    def segments(self, previous_T: Tensor) -> Tensor:
        """(..., T) segment ids 0, 1, ... of whole responses, from the token before each response token."""
        position_T = torch.arange(previous_T.shape[-1], device=previous_T.device).expand_as(previous_T)
        return self.begins(position_T, previous_T).long().cumsum(-1) - 1


@dataclass(frozen=True)
class Every(Segmenter):
    """A segment of every n tokens; n = 1 is the token level."""

    n: int = 1

    @property
    def level(self) -> str:
        """`token` or `every:N`."""
        return "token" if self.n == 1 else f"every:{self.n}"

    def _begins(self, position_N: Tensor, previous_N: Tensor) -> Tensor:
        return position_N % self.n == 0

    def at(self, position: int, previous_B: Tensor) -> bool | Tensor:
        """The same for all rows."""
        return position % self.n == 0


@dataclass(frozen=True)
class WholeResponse(Segmenter):
    """The whole response is one segment."""

    @property
    def level(self) -> str:
        """`sequence`."""
        return "sequence"

    def _begins(self, position_N: Tensor, previous_N: Tensor) -> Tensor:
        return torch.zeros_like(position_N, dtype=torch.bool)

    def at(self, position: int, previous_B: Tensor) -> bool | Tensor:
        """The first position alone."""
        return position == 0


@dataclass(frozen=True)
class Delimiter(Segmenter):
    """A segment begins after each token whose text, without trailing blanks, ends in one of the characters."""

    characters: str  # e.g. `.!?`; a newline counts where `\n` is among them
    token_ids: tuple[int, ...]  # the tokens this means in one vocabulary (saved with an adapter)

    @property
    def level(self) -> str:
        """`delimiter:CHARS`."""
        return f"delimiter:{self.characters}"

    def _begins(self, position_N: Tensor, previous_N: Tensor) -> Tensor:
        return torch.isin(previous_N, _on(previous_N.device, self.token_ids))


@lru_cache(maxsize=16)
def _on(device: torch.device, token_ids: tuple[int, ...]) -> Tensor:
    """Kept, because sending them at every step would make the host wait for a GPU."""
    return torch.tensor(token_ids, device=device)


def parse_level(level: str, tokenizer: Any = None, token_ids: Collection[int] | None = None) -> Segmenter:
    """The segmenter that a level names: `token`, `sequence`, `every:8`, `delimiter:.!?`.

    Args:
        tokenizer: needed for a delimiter, to find its tokens, unless `token_ids` gives them.

    Raises:
        ConfigError: an unknown level, or a delimiter that no token ends in.
    """
    kind, colon, detail = level.partition(":")
    if level == "token":
        return Every(1)
    if level == "sequence":
        return WholeResponse()
    if kind == "every" and detail.isascii() and detail.isdigit() and 0 < int(detail) < 2**31:
        return Every(int(detail))
    detail = detail.replace("\\n", "\n")  # as a shell or a plain YAML scalar passes it
    if kind == "delimiter" and colon and detail:
        ids = token_ids if token_ids is not None else _ending_in(detail, tokenizer)
        if not ids:
            raise ConfigError(f"No token of this vocabulary ends in any of {detail!r}, so level {level!r} would never cut.")
        return Delimiter(detail, tuple(sorted(ids)))
    raise ConfigError(f"There is no level {level!r}. {did_you_mean(level, FORMS)}")


def _ending_in(characters: str, tokenizer: Any) -> list[int]:
    if tokenizer is None:
        raise ConfigError("A delimiter level needs the model's tokenizer to know which tokens end a segment.")
    special = set(tokenizer.all_special_ids)
    texts = {i: tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in special}
    blank = "".join(c for c in " \t\r\n" if c not in characters)
    return [i for i, text in texts.items() if text.rstrip(blank).endswith(tuple(characters))]
