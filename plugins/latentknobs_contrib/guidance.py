"""Knobs that compare with a second reading: of the prompt without its evidence, or of the response alone."""

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ContextKnob, Stage

ENDLESS = 1e6  # nats; a half-life that stands for an infinite one
COLDEST = 1e-6  # least factor of a temperature


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


class KLHalfLife(ContextKnob):
    """KL-guided temperature: T_t = T_0 * 2^(-KL_t / sigma) (Chang et al. 2023, arXiv 2306.01286; its code's `kl_bandwidth`).

    KL_t, in nats, is that of the LM's own next-token distribution from the one of the second reading, whatever knobs act before:
    where the evidence matters, text becomes colder. The value is the half-life sigma, T_0 the knob `temperature`. `inf` may be
    written for 1,000,000, which changes nothing.
    """

    name: ClassVar[str] = "kl_half_life"
    stage: ClassVar[Stage] = Stage.SCALE
    neutral: ClassVar[float] = ENDLESS
    needs: ClassVar[tuple[str, ...]] = ("logits_NV", "second_NV")
    options: tuple[Annotated[float, Field(gt=0, le=ENDLESS)], ...] = (0.5, 2.0, 8.0, ENDLESS)

    @field_validator("options", mode="before")
    @classmethod
    def _endless(cls, options: Any) -> Any:
        values = (options,) if isinstance(options, int | float) else options
        return tuple(ENDLESS if value == math.inf else value for value in values)

    def apply_context(self, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
        """(N, V) logits over 2^(-KL / sigma), which is at least one millionth; neutral rows as they came."""
        first_NV, second_NV = context.logits_NV.log_softmax(-1), context.second_NV.log_softmax(-1)
        kl_N = torch.where(first_NV.isneginf(), 0.0, first_NV.exp() * (first_NV - second_NV)).sum(-1).clamp(min=0)
        factor_N1 = torch.exp2(-kl_N / value_N).clamp(min=COLDEST).to(logits_NV.dtype).unsqueeze(-1)
        colder_NV = (logits_NV - logits_NV.amax(-1, keepdim=True)) / factor_N1
        return torch.where((value_N == self.neutral).unsqueeze(-1), logits_NV, colder_NV)
