"""Knobs that remove tokens from the top of the order too, and therefore implement `apply` themselves."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from latentknobs.knobs.knob import DecodingKnob, Stage


class TypicalP(DecodingKnob):
    """Keeps the tokens whose surprise is nearest to the entropy, until their mass reaches p (locally typical sampling).

    Meister et al. 2022, arXiv 2202.00666. Tokens equally far from the entropy as the last kept one are kept too.
    """

    name: ClassVar[str] = "typical_p"
    stage: ClassVar[Stage] = Stage.SHAPE
    neutral: ClassVar[float] = 1.0
    options: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.2, 0.5, 0.95, 1.0)

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """-inf where |-log p - H| exceeds that of the token at which the mass reaches p."""
        logp_NV = logits_NV.log_softmax(-1)
        p_NV = logp_NV.exp()
        entropy_N1 = torch.special.entr(p_NV).sum(-1, keepdim=True)
        distance_NV = (-logp_NV - entropy_N1).abs()
        sorted_NV, order_NV = distance_NV.sort(-1)
        mass_NV = p_NV.gather(-1, order_NV).cumsum(-1)
        last_N1 = (mass_NV < value_N.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=logits_NV.shape[-1] - 1)
        keep_NV = (distance_NV <= sorted_NV.gather(-1, last_N1)) | (value_N == self.neutral).unsqueeze(-1)
        return logits_NV.masked_fill(~keep_NV, -torch.inf)


class XtcThreshold(DecodingKnob):
    """Excludes top choices: of the tokens with probability >= threshold, only the least probable stays ("XTC").

    Weidmann 2024 (text-generation-webui pull request 6335, llama.cpp pull request 9742). Those implementations flip a
    coin at each token for whether to act; here the coin is the choice between this knob's options.
    """

    name: ClassVar[str] = "xtc_threshold"
    stage: ClassVar[Stage] = Stage.TOP
    neutral: ClassVar[float] = 1.0
    options: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.1, 0.2, 1.0)

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """-inf at every token above the lowest probability that is >= threshold."""
        p_NV = logits_NV.softmax(-1)
        is_top_NV = p_NV >= value_N.unsqueeze(-1)
        least_N1 = torch.where(is_top_NV, p_NV, torch.inf).amin(-1, keepdim=True)
        return logits_NV.masked_fill(is_top_NV & (p_NV > least_N1), -torch.inf)
