"""Rules that follow evidence, confidence and places: KL-guided temperature, guidance at a fixed scale, a gate, AdapT."""

from typing import Any

import torch
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.heads.features import read_features
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.information import kl
from latentknobs.likelihood.rows import wide
from latentknobs.policies.base import State
from latentknobs.policies.fixed import ConstantPolicy
from latentknobs.policies.rules import COLDEST, SentenceStart, TemperatureRule, TwoTemperatures, check_setting


class KLGuided(TemperatureRule):
    """Colder where the evidence matters: T = base * 2^(-KL / half_life) (Chang et al. 2023, arXiv 2306.01286).

    KL is that of the LM's distribution from the one without evidence, on unscaled logits. The knob `kl_half_life` is the same
    as a value to be learned.

    Args:
        base: T where the evidence says nothing.
        half_life: nats of KL that halve it.
    """

    needs = ("second_NV",)

    def __init__(self, base: float, half_life: float) -> None:
        super().__init__()
        self.base = check_setting("kl_guided", "base", base, 0)
        self.half_life = check_setting("kl_guided", "half_life", half_life, COLDEST)

    def temperature(self, seen: Observation) -> Tensor:
        """(N,) its formula."""
        return self.base * torch.exp2(-kl(wide(seen.logits_NV), seen.second_NV).double() / self.half_life)


class ConfidenceGate(TwoTemperatures):
    """Cold where the LM is sure: where its best token has at least some probability.

    The gate that arXiv 2603.09065 puts before its learned policy (there 0.95, and greedy behind it).
    """

    def __init__(self, threshold: float, hot: float, cold: float = 0.0, min_p: float = 0.0) -> None:
        super().__init__(cold, hot, min_p)
        self.threshold = check_setting("confidence_gate", "threshold", threshold, 0, 1)

    def is_cold(self, seen: Observation, state: State) -> Tensor:
        """(N,) where the best token has at least the threshold."""
        return read_features(["max_prob"], seen.hidden_ND, seen.logits_NV).squeeze(-1) >= self.threshold


def adapt(first: float, rest: float, after: str = "\n", tokenizer: Any = None) -> SentenceStart:
    """AdapT: one temperature for the first token of a block, where code is hard to predict, another for the rest (Zhu et al.
    2024, arXiv 2309.02772). A block begins after a line break, or after any of the characters `after`.
    """
    return SentenceStart(first, rest, after=after, tokenizer=tokenizer)


def cfg(scale: float, temperature: float = 1.0) -> ConstantPolicy:
    """Classifier-free guidance at a fixed scale (Sanchez et al. 2023, arXiv 2306.17806)."""
    return ConstantPolicy(KnobSpace.of({"guidance_scale": [scale]}, {"temperature": [temperature]}))


def classifier(scale: float, discriminator: str, temperature: float = 1.0) -> ConstantPolicy:
    """Guidance by a discriminator at a fixed scale: P(token) * D(token)^scale (FUDGE: Yang and Klein 2021, arXiv 2104.05218).

    Args:
        discriminator: a file that `latentknobs discriminator` wrote.
    """
    if not discriminator:
        raise ConfigError("The policy 'classifier' needs discriminator=FILE, which `latentknobs discriminator RUN` writes.")
    knob: Any = {"options": [scale], "discriminator": discriminator}
    return ConstantPolicy(KnobSpace.of({"classifier_scale": knob}, {"temperature": [temperature]}))
