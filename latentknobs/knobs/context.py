"""What a knob may read beside the logits: earlier tokens, the position, or a second set of logits.

Most knobs read none of this and never see a `Context`. A knob that does names the parts in `needs`, and is given those
parts and no others, so that loss and decoder know exactly what they must supply.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from latentknobs.errors import DecodingError

PARTS = ("previous_NL", "position_N", "second_NV")


class Context:
    """Parts of the situation in which each of N rows of logits arose. Parts that were not given cannot be read.

    Attributes:
        previous_NL: (N, L) ids of all earlier tokens, prompt included; -1 where a row has fewer (on either side).
        position_N: (N,) how many response tokens came before.
        second_NV: (N, V) logits of the same token in another context. `generate` and `train` supply those of the same model
            without the prompt (see `latentknobs.engines.transformers.second`); who calls the likelihoods may supply any.
    """

    previous_NL: Tensor
    position_N: Tensor
    second_NV: Tensor

    def __init__(self, **parts: Tensor) -> None:
        if unknown := sorted(set(parts) - set(PARTS)):
            raise TypeError(f"There is no part {unknown[0]!r} of a context. Known: {', '.join(PARTS)}.")
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what was not given.
        raise AttributeError(f"This context does not hold {name!r}; a knob reads what it names in `needs`.")

    @property
    def parts(self) -> dict[str, Tensor]:
        """What is there, by name."""
        return dict(self.__dict__)

    def only(self, needs: Iterable[str], who: str) -> "Context":
        """The parts that a knob needs.

        Raises:
            DecodingError: one is missing; `who` is the knob's name for the message.
        """
        if missing := [part for part in needs if part not in self.__dict__]:
            raise missing_part(who, missing[0])
        return Context(**{part: self.__dict__[part] for part in needs})

    def rows(self, index: slice | Tensor) -> "Context":
        """The context of some rows, e.g. of one chunk."""
        return Context(**{part: tensor[index] for part, tensor in self.__dict__.items()})

    def __repr__(self) -> str:
        return f"Context({', '.join(f'{part} {tuple(tensor.shape)}' for part, tensor in self.__dict__.items())})"

    @classmethod
    def of_response(
        cls,
        prompt: Sequence[int],
        response: Sequence[int],
        device: torch.device | str = "cpu",
        second_TV: Tensor | None = None,
    ) -> "Context":
        """The T contexts in which the T tokens of a finished response were sampled (teacher forcing).

        Row t has seen the prompt and `response[:t]`. Takes T * (P + T) int64 numbers.

        Args:
            second_TV: second logits of any floating dtype, where a knob needs them (see `read_contexts`).
        """
        ids_L = torch.tensor([*prompt, *response[:-1]], device=device, dtype=torch.long)
        position_T = torch.arange(len(response), device=device)
        is_seen_TL = torch.arange(len(ids_L), device=device) < (len(prompt) + position_T).unsqueeze(-1)
        return cls(previous_NL=torch.where(is_seen_TL, ids_L, -1), position_N=position_T, **_second(second_TV))

    @classmethod
    def of_step(
        cls, ids_BL: Tensor, prompt_length: int, mask_BL: Tensor | None = None, second_BV: Tensor | None = None
    ) -> "Context":
        """The contexts of the next token of B unfinished sequences.

        Args:
            ids_BL: (B, L) prompt and response so far.
            prompt_length: columns of it that belong to the prompt.
            mask_BL: (B, L) or (B, prompt_length), 0 at padding.
            second_BV: second logits of any floating dtype, where a knob needs them.
        """
        if mask_BL is not None:
            is_real_BL = torch.ones_like(ids_BL, dtype=torch.bool)
            is_real_BL[:, : mask_BL.shape[1]] = mask_BL.bool()
            ids_BL = torch.where(is_real_BL, ids_BL, -1)
        position = ids_BL.shape[1] - prompt_length
        return cls(previous_NL=ids_BL, position_N=ids_BL.new_full((len(ids_BL),), position), **_second(second_BV))


def _second(second_NV: Tensor | None) -> dict[str, Tensor]:
    """The part as knobs are given logits: float32 or wider."""
    if second_NV is None:
        return {}
    return {"second_NV": second_NV if second_NV.dtype == torch.float64 else second_NV.float()}


def missing_part(who: str, part: str) -> DecodingError:
    """The error for a knob whose context was not supplied."""
    return DecodingError(
        f"The knob {who!r} reads {part}, which was not supplied. Pass context=latentknobs.Context({part}=...) along with "
        "the logits, or leave the knob out."
    )
