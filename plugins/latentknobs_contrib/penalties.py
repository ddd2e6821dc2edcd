"""Knobs that read earlier tokens."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ContextKnob


class RepetitionPenalty(ContextKnob):
    """Divides positive logits of earlier tokens by the penalty and multiplies negative ones (Keskar et al. 2019,
    arXiv 1909.05858, section 4.1). As in transformers, tokens of the prompt count and padding does not.
    """

    name: ClassVar[str] = "repetition_penalty"
    neutral: ClassVar[float] = 1.0
    needs: ClassVar[tuple[str, ...]] = ("previous_NL",)
    options: tuple[Annotated[float, Field(gt=0)], ...] = (1.0, 1.1, 1.3)

    def apply_context(self, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
        """(N, V) with the logits of all tokens in `previous_NL` penalised once."""
        vocabulary, ids_NL = logits_NV.shape[-1], context.previous_NL
        is_id_NL = (ids_NL >= 0) & (ids_NL < vocabulary)
        seen_NV = logits_NV.new_zeros(len(logits_NV), vocabulary + 1, dtype=torch.bool)
        seen_NV.scatter_(1, torch.where(is_id_NL, ids_NL, vocabulary), True)
        penalty_N1 = value_N.unsqueeze(-1)
        penalised_NV = torch.where(logits_NV < 0, logits_NV * penalty_N1, logits_NV / penalty_N1)
        return torch.where(seen_NV[:, :vocabulary], penalised_NV, logits_NV)
