"""The three truncations every engine has: top-k, top-p (nucleus) and min-p, each a prefix of the descending order.

At the neutral value the base class keeps every token, so the formulas below need not be exact there.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from latentknobs.knobs.knob import Columns, Sees, Stage, TruncationKnob


class TopK(TruncationKnob):
    """Keeps the k most probable tokens (Fan et al. 2018, arXiv 1805.04833); 0 keeps all."""

    name: ClassVar[str] = "top_k"
    stage: ClassVar[Stage] = Stage.RANK
    sees: ClassVar[Sees] = "prefix"
    neutral: ClassVar[float] = 0.0
    options: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 5.0, 20.0, 50.0)

    @field_validator("options")
    @classmethod
    def _whole(cls, options: tuple[float, ...]) -> tuple[float, ...]:
        if broken := [value for value in options if value != int(value)]:
            raise ValueError(f"{broken[0]:g} is not a whole number of tokens")
        return options

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """(N,) k."""
        return value_N.long()


class TopP(TruncationKnob):
    """Keeps the smallest set of top tokens whose mass reaches p (Holtzman et al. 2020, arXiv 1904.09751).

    The token that crosses p is kept, as in transformers, vLLM and llama.cpp.
    """

    name: ClassVar[str] = "top_p"
    stage: ClassVar[Stage] = Stage.MASS
    sees: ClassVar[Sees] = "mass"
    neutral: ClassVar[float] = 1.0
    options: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.8, 0.95, 1.0)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """(N,) 1 + the number of prefixes whose mass is still below p."""
        mass_NV = torch.softmax(sorted_NV, -1).cumsum(-1)
        return torch.searchsorted(mass_NV, value_N.contiguous().unsqueeze(-1)).squeeze(-1).add_(1)  # masses ascend

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        """(N, C) probability of the tokens before, minus p: the token that crosses p is kept."""
        return columns.before_NC - value_N.unsqueeze(-1)


class MinP(TruncationKnob):
    """Keeps tokens at least min_p times as probable as the best one (Nguyen et al. 2024, arXiv 2407.01082)."""

    name: ClassVar[str] = "min_p"
    stage: ClassVar[Stage] = Stage.THRESHOLD
    sees: ClassVar[Sees] = "prefix"
    neutral: ClassVar[float] = 0.0
    options: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.02, 0.05, 0.1)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """(N,) count of logits >= max + ln(min_p): the logit form needs no normaliser."""
        ascending_NV = -sorted_NV.contiguous()
        return torch.searchsorted(ascending_NV, ascending_NV[:, :1] - value_N.log().unsqueeze(-1), right=True).squeeze(-1)

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        """(N, C) nats below max + ln(min_p)."""
        log_min_N1 = value_N.clamp(min=torch.finfo(value_N.dtype).tiny).log().unsqueeze(-1)
        return columns.logit_NC[:, :1] + log_min_N1 - columns.logit_NC
