"""Policies that read nothing: constants, greedy decoding, and the mixtures that sample the first rollouts."""

import torch
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.heads.segmenters import Every, Segmenter
from latentknobs.knobs.context import Observation
from latentknobs.knobs.knob import Stage
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies.base import Choice, State
from latentknobs.policies.categorical import CategoricalPolicy, option_values


class ConstantPolicy(CategoricalPolicy):
    """Always the same option, as in ordinary decoding. It is the same at every level; this one is of level `token`."""

    def __init__(self, space: KnobSpace, option: int = 0) -> None:
        if not 0 <= option < space.K:
            raise ConfigError(f"There is no option {option} in {space!r}.")
        super().__init__(space, Every(1), "greedy")
        self.option = option

    def log_pi(self, seen: Observation, state: State = None) -> Tensor:
        """(N, K) one-hot."""
        out_NK = torch.full((len(seen.logits_NV), self.space.K), -torch.inf, device=seen.logits_NV.device)
        out_NK[:, self.option] = 0.0
        return out_NK

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """The option; reads nothing."""
        rows, device = len(seen.logits_NV), seen.logits_NV.device
        value_NJ = option_values(self.space, device)[self.option].expand(rows, -1)
        return Choice(value_NJ, torch.full((rows,), self.option, device=device))


class GreedyPolicy(ConstantPolicy):
    """Greedy decoding of the LM itself: temperature 0."""

    def __init__(self) -> None:
        super().__init__(KnobSpace.of({"temperature": [0.0]}))


class UniformPolicy(CategoricalPolicy):
    """Draws every option equally often: an untrained head, and the policy of the first rollouts."""

    def __init__(self, space: KnobSpace, segmenter: Segmenter) -> None:
        super().__init__(space, segmenter, "sample")

    def log_pi(self, seen: Observation, state: State = None) -> Tensor:
        """(N, K) all -log K."""
        return torch.zeros(len(seen.logits_NV), self.space.K, device=seen.logits_NV.device).log_softmax(-1)


class BalancedPolicy(UniformPolicy):
    """Draws half of its segments from the options that cut nothing off, and half from all.

    Where several knobs truncate, hardly any option of their product leaves the tail alone, so that rollouts of the uniform
    mixture hardly show what a tail is worth (docs/log.md). In a space without such options, or of nothing else, it is the
    uniform mixture.
    """

    def log_pi(self, seen: Observation, state: State = None) -> Tensor:
        """(N, K) log of the mean of two uniform distributions."""
        cutting = [knob for knob in self.space.knobs if knob.stage not in (Stage.CONTEXT, Stage.SCALE)]
        free_K = torch.tensor([all(option[knob.name] == knob.neutral for knob in cutting) for option in self.space.options])
        flat_K = torch.full((self.space.K,), 1 / self.space.K)
        pi_K = 0.5 * flat_K + 0.5 * free_K / free_K.sum() if free_K.any() else flat_K
        return pi_K.log().to(seen.logits_NV.device).expand(len(seen.logits_NV), -1)
