"""A rule as a policy: hot for the first tokens of a response, then cold."""

import torch
from torch import Tensor

from latentknobs import Choice, KnobSpace, Observation, Policy
from latentknobs.heads.segmenters import parse_level


class WarmStart(Policy):
    """Temperature `hot` for the first tokens of a response, `cold` afterwards: how it begins decides how diverse samples are."""

    needs = ("position_N",)
    draws = False

    def __init__(self, hot: float = 1.2, cold: float = 0.5, tokens: int = 4) -> None:
        self.space, self.segmenter = KnobSpace.of({"temperature": sorted({cold, hot})}), parse_level("token")
        self.hot, self.cold, self.tokens = hot, cold, tokens

    def choose(self, seen: Observation, uniform_N: Tensor, state: None = None) -> Choice:
        value_N = torch.where(seen.position_N < self.tokens, self.hot, self.cold)
        return Choice(value_N.double().unsqueeze(-1))
