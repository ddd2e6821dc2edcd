"""Guidance by a discriminator that was trained on the LM's hidden states."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from latentknobs import Discriminator, load_discriminator
from latentknobs.errors import ConfigError, DecodingError
from latentknobs.knobs.context import Context
from latentknobs.knobs.knob import ContextKnob


class ClassifierScale(ContextKnob):
    """Classifier guidance: P(token) * D(token)^scale, D being the probability of a property of the finished response (Theorem
    3.1 of arXiv 2311.10083; FUDGE: Yang and Klein 2021, arXiv 2104.05218).

    Setting:
        discriminator: a file that `latentknobs discriminator` wrote. Without one, the only option is the neutral 0.
    """

    name: ClassVar[str] = "classifier_scale"
    neutral: ClassVar[float] = 0.0
    needs: ClassVar[tuple[str, ...]] = ("hidden_ND",)
    knows_tokens: ClassVar[bool] = True
    options: tuple[Annotated[float, Field(ge=0)], ...] = (0.0,)
    discriminator: str = ""

    def __init__(self, **data: Any) -> None:
        super().__init__(**data)
        if self.discriminator:
            self._found()  # refuses a file that cannot be read
        elif self.options != (self.neutral,):
            raise ConfigError(
                f"The knob 'classifier_scale' with options {list(self.options)} needs a discriminator. Write {{'classifier_scale'"
                ": {'options': [0, 1, 2], 'discriminator': FILE}}, with a file of `latentknobs discriminator RUN`."
            )

    @property
    def hidden_size(self) -> int | None:
        """That of the discriminator."""
        return len(self._found()[0].mean_D) if self.discriminator else None

    def _found(self) -> tuple[Discriminator, str]:
        return load_discriminator(self.discriminator)

    def apply_context(self, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
        """(N, V) logits + scale * log D; neutral rows as they came.

        Raises:
            DecodingError: the hidden states are of another width than the discriminator's.
        """
        if not self.discriminator:
            return logits_NV.clone()
        (found, model), hidden_ND = self._found(), context.hidden_ND
        if hidden_ND.shape[-1] != len(found.mean_D):
            raise DecodingError(
                f"The discriminator {self.discriminator!r} reads hidden states of width {len(found.mean_D)} (of {model}), and "
                f"this model's have {hidden_ND.shape[-1]}. Train one on a run of this model: latentknobs discriminator RUN."
            )
        wide = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
        log_d_NV = found.to(hidden_ND.device).log_prob(hidden_ND.to(wide), logits_NV.shape[-1]).to(logits_NV)
        guided_NV = logits_NV + value_N.unsqueeze(-1) * log_d_NV
        return torch.where((value_N == self.neutral).unsqueeze(-1), logits_NV, guided_NV)
