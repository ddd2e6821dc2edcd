"""Knobs that compare with a second reading."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ContextKnob


class GuidanceScale(ContextKnob):
    """Classifier-free guidance: how much more the prompt counts (Sanchez et al. 2023, arXiv 2306.17806).

    Log-probabilities move away from those that the model gives without the prompt: second + scale * (first - second).
    Above 1 the prompt counts more, at 0 not at all. A token that the second reading rules out keeps its log-probability.
    """

    name: ClassVar[str] = "guidance_scale"
    neutral: ClassVar[float] = 1.0
    needs: ClassVar[tuple[str, ...]] = ("second_NV",)
    options: tuple[Annotated[float, Field(ge=0)], ...] = (1.0, 1.25, 1.5, 2.0)

    def apply_context(self, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
        """(N, V) guided log-probabilities; rows at scale 1 as they came."""
        first_NV, second_NV = logits_NV.log_softmax(-1), context.second_NV.log_softmax(-1)
        guided_NV = value_N.unsqueeze(-1) * (first_NV - second_NV) + second_NV
        guided_NV = torch.where(first_NV.isneginf() | second_NV.isneginf(), first_NV, guided_NV)
        return torch.where((value_N == self.neutral).unsqueeze(-1), logits_NV, guided_NV)
