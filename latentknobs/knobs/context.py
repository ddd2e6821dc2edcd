"""Observations: what a knob or a policy may read when a token is drawn.

Most knobs read nothing but the logits and never see an `Observation`. One that reads more names the parts in `needs`, and gets
those parts and no others, so that loss and decoder know exactly what they must supply. A policy always gets the hidden state
and the logits, and names the rest in its own `needs`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from latentknobs.errors import DecodingError
from latentknobs.tensors import pick

# those that a knob may read: training can supply them too
KNOB_PARTS = ("previous_NL", "position_N", "second_NV", "hidden_ND", "logits_NV")
PARTS = (*KNOB_PARTS, "remaining_N", "samples_N")


class Observation:
    """What is known when each of N tokens is drawn. Parts that were not supplied cannot be read.

    Attributes:
        previous_NL: (N, L) ids of all earlier tokens, prompt included; -1 where a row has fewer (on either side).
        position_N: (N,) how many response tokens came before.
        second_NV: (N, V) logits of the same token in another context. `generate` and `train` supply those of the same model
            after the prompt without its evidence, or after its last token (see `latentknobs.data.evidence`); a caller of the
            likelihoods may supply any.
        hidden_ND: (N, D) inputs of the output embeddings.
        logits_NV: (N, V) the LM's own logits, before any knob acts.
        remaining_N: (N,) how many tokens the response may still have, this one included (`max_new_tokens` at position 0).
        samples_N: (N,) how many responses to the same prompt are sampled.
    """

    previous_NL: Tensor
    position_N: Tensor
    second_NV: Tensor
    hidden_ND: Tensor
    logits_NV: Tensor
    remaining_N: Tensor
    samples_N: Tensor

    def __init__(self, **parts: Tensor) -> None:
        if unknown := sorted(set(parts).difference(PARTS)):
            raise TypeError(f"There is no part {unknown[0]!r} of an observation. Known: {', '.join(PARTS)}.")
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        # Reached only for a part that was not supplied.
        raise AttributeError(f"This observation does not hold {name!r}; a knob or a policy reads what it names in `needs`.")

    @property
    def parts(self) -> dict[str, Tensor]:
        """The supplied parts, by name."""
        return dict(self.__dict__)

    @property
    def newest_N(self) -> Tensor:
        """(N,) the token just before, which may be the prompt's last one; -1 where there is none. Reads `previous_NL`."""
        previous_NL = self.previous_NL
        place_L = torch.arange(previous_NL.shape[1], device=previous_NL.device)
        last_N = torch.where(previous_NL >= 0, place_L, 0).amax(-1)
        return pick(previous_NL, last_N)

    def only(self, needs: Iterable[str], knob: str) -> "Observation":
        """The parts that a knob needs.

        Raises:
            DecodingError: one is missing; `knob` is the name for the message.
        """
        if missing := [part for part in needs if part not in self.__dict__]:
            raise missing_part(knob, missing[0])
        return Observation(**{part: self.__dict__[part] for part in needs})

    def rows(self, index: slice | Tensor) -> "Observation":
        """The observation of some rows, e.g. of one chunk."""
        return Observation(**{part: tensor[index] for part, tensor in self.__dict__.items()})

    def __repr__(self) -> str:
        return f"Observation({', '.join(f'{part} {tuple(tensor.shape)}' for part, tensor in self.__dict__.items())})"

    @classmethod
    def of_response(
        cls, prompt: Sequence[int], response: Sequence[int], device: torch.device | str = "cpu", second_TV: Tensor | None = None,
    ) -> "Observation":  # fmt: skip
        """What knobs could read as the T tokens of a finished response were sampled (teacher forcing).

        Row t has seen the prompt and `response[:t]`. Takes T * (P + T) int64 numbers.

        Args:
            second_TV: second logits of any floating dtype, where a knob needs them (see `Engine.observe`).
        """
        ids_L = torch.tensor([*prompt, *response[:-1]], device=device, dtype=torch.long)
        position_T = torch.arange(len(response), device=device)
        is_seen_TL = torch.arange(len(ids_L), device=device) < (len(prompt) + position_T).unsqueeze(-1)
        return cls(previous_NL=torch.where(is_seen_TL, ids_L, -1), position_N=position_T, **_second(second_TV))

    @classmethod
    def of_step(
        cls, ids_BL: Tensor, prompt_length: int, mask_BL: Tensor | None = None, second_BV: Tensor | None = None
    ) -> "Observation":
        """What knobs may read of the next token of B unfinished sequences.

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

    def budgeted(self, max_new_tokens: int | None, samples: int, needs: Iterable[str]) -> "Observation":
        """The same with what is left of the budgets, where `needs` names them.

        Raises:
            DecodingError: the token budget is needed and not known.
        """
        parts = self.parts
        if "remaining_N" in needs:
            if max_new_tokens is None:
                raise DecodingError(
                    "The policy reads remaining_N, how many tokens the response may still have, which is not known here. Pass "
                    "max_new_tokens to generate."
                )
            parts["remaining_N"] = max_new_tokens - self.position_N
        if "samples_N" in needs:
            parts["samples_N"] = torch.full_like(self.position_N, samples)
        return Observation(**parts)


Context = Observation  # its public name for authors of knobs


def _second(second_NV: Tensor | None) -> dict[str, Tensor]:
    """The part as knobs get logits: float32 or wider."""
    if second_NV is None:
        return {}
    return {"second_NV": second_NV if second_NV.dtype == torch.float64 else second_NV.float()}


def missing_part(knob: str, part: str) -> DecodingError:
    """The error for a knob whose context was not supplied."""
    return DecodingError(
        f"The knob {knob!r} reads {part}, which was not supplied. Pass context=latentknobs.Context({part}=...) along with "
        "the logits, or leave the knob out."
    )
