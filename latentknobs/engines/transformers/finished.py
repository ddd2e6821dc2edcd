"""What is known of a call of `generate` beside the ids that it returned, for reading these back."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from latentknobs.engines.transformers.record import end_of
from latentknobs.engines.transformers.second import LeftPadded
from latentknobs.errors import DecodingError


@dataclass
class Call:
    """One call of `generate`."""

    prompt_length: int  # columns of the prompt in what it returns
    copies: int  # sequences returned per request, where they share its uniforms (beams)
    max_new_tokens: int | None
    samples: int  # max_new_tokens, samples: its budgets
    ignored: tuple[str, ...] = ()  # sampling arguments that it passed and that did not act
    mask_BP: Tensor | None = None  # attention mask of its prompts, inferred by `generate` where the caller passed none
    second: LeftPadded | None = None  # its prompts without evidence, if any
    ends: Collection[int] = ()
    padding: Collection[int] = ()  # ends, padding: ids that end a row, and that stand behind its end
    may_stop: bool = False  # whether rows may also end without such an id: stop strings, criteria, time
    processors: tuple[str, ...] = ()  # what changed the distribution after the policy
    sequences_BL: Tensor | None = None  # what it returned

    def see_mask(self, mask_BL: Any, beams: int) -> None:
        """The mask of the first forward pass, which `generate` infers from padding where the caller passes none."""
        if self.mask_BP is None and isinstance(mask_BL, Tensor) and mask_BL.dim() == 2 and self.prompt_length:
            self.mask_BP = repeat(mask_BL[::beams, : self.prompt_length], "b p -> (b copies) p", copies=self.copies)

    def returned(self, sequences_BL: Tensor, prompt_length: int) -> bool:
        """Whether these are the sequences that this call returned."""
        mine_BL = self.sequences_BL
        return (
            mine_BL is not None and prompt_length == self.prompt_length and torch.equal(mine_BL, sequences_BL.to(mine_BL.device))
        )

    def check_recordable(self) -> None:
        """Raises:
        DecodingError: the tokens were not drawn from what the policy chose alone.
        """
        if self.processors:
            raise DecodingError(
                f"generate applied {', '.join(self.processors)} after the policy, so these tokens were not drawn from what the "
                "policy chose, and a record would be wrong. Leave that setting out, or use a knob for it (repetition_penalty)."
            )

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each response, its end token included."""
        assert self.sequences_BL is not None
        found, padding = [], self.padding or self.ends
        for row in self.sequences_BL[:, self.prompt_length :].tolist():
            length = end_of(row, self.ends)
            if length == len(row) and self.may_stop and row[-1] not in self.ends:
                while length > 1 and row[length - 1] in padding:
                    length -= 1
            found.append(length)
        return found
