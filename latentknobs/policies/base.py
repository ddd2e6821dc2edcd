"""Who chooses the options while decoding: learned heads and the baselines they are compared with.

A policy is a distribution over the options of a space at the beginning of each segment, and a rule to pick from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.heads.features import HIDDEN, check_features, read_features
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every, Segmenter
from latentknobs.heads.segmenters import Sequence as WholeSequence
from latentknobs.knobs.knob import Stage
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood import apply_options
from latentknobs.tensors import host_sees

Pick = Literal["greedy", "sample"]
FEW = 1 << 14  # probabilities


class Policy(ABC):
    """Chooses an option for every segment.

    Attributes:
        space: the options.
        segmenter: where a new choice is made.
        pick: `greedy` takes the most probable option (Eq. 4 of arXiv 2411.09661), `sample` draws it (Eq. 5).
        keeps_rows: True where a policy or its segmenter remembers anything about a row from one token to the next. Finished rows
            then stay in their batch (`engines.transformers.leaving`), and a row keeps its number until all have finished.
    """

    keeps_rows = False

    def __init__(self, space: KnobSpace, segmenter: Segmenter, pick: Pick) -> None:
        self.space = space
        self.segmenter = segmenter
        self.pick = pick

    @abstractmethod
    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, K) log-probabilities of the options, from hidden states (N, D) and unchanged logits (N, V)."""

    def choose(self, log_pi_NK: Tensor, uniform_N: Tensor) -> Tensor:
        """(N,) option indices; `uniform_N` in [0, 1) decides where the pick is `sample` (inverse CDF)."""
        if self.pick == "greedy":
            return log_pi_NK.argmax(-1)
        if host_sees(log_pi_NK) and log_pi_NK.numel() <= FEW:  # numpy's operations start several times faster
            cdf = np.exp(log_pi_NK.detach().double().numpy()).cumsum(-1)
            place_N = (cdf <= uniform_N.double().numpy()[:, None] * cdf[:, -1:]).sum(-1)
            return torch.from_numpy(np.minimum(place_N, log_pi_NK.shape[-1] - 1))
        cdf_NK = log_pi_NK.double().exp().cumsum(-1)
        threshold_N1 = (uniform_N * cdf_NK[:, -1]).unsqueeze(-1)
        return torch.searchsorted(cdf_NK, threshold_N1, right=True).squeeze(-1).clamp(max=log_pi_NK.shape[-1] - 1)

    def warp(self, logits_NV: Tensor, option_N: Tensor) -> Tensor:
        """(N, V) logits of the distribution that the options sample from; -inf outside the kept set."""
        return apply_options(logits_NV, self.space, option_N)


class HeadPolicy(Policy):
    """A learned head. `features` says what it reads (see `latentknobs.heads.features`)."""

    def __init__(
        self,
        head: OptionHead,
        space: KnobSpace,
        segmenter: Segmenter,
        features: Sequence[str] = (HIDDEN,),
        pick: Pick = "greedy",
    ) -> None:
        super().__init__(space, segmenter, pick)
        self.head = head
        self.features = check_features(features)

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, K) from the head."""
        with torch.no_grad():
            log_pi_NK: Tensor = self.head(read_features(self.features, hidden_ND, logits_NV))
        return log_pi_NK


class ConstantPolicy(Policy):
    """Always the same option: what everybody does today."""

    def __init__(self, space: KnobSpace, option: int) -> None:
        if not 0 <= option < space.K:
            raise ConfigError(f"There is no option {option} in {space!r}.")
        super().__init__(space, WholeSequence(), "greedy")
        self.option = option

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, K) one-hot."""
        out_NK = torch.full((len(logits_NV), self.space.K), -torch.inf, device=logits_NV.device)
        out_NK[:, self.option] = 0.0
        return out_NK


class UniformPolicy(Policy):
    """Draws every option equally often: an untrained head, and the policy of the first rollouts."""

    def __init__(self, space: KnobSpace, segmenter: Segmenter) -> None:
        super().__init__(space, segmenter, "sample")

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, K) all -log K."""
        return _flat(self.space.K, logits_NV.device).expand(len(logits_NV), -1)


@lru_cache(maxsize=16)
def _flat(K: int, device: torch.device) -> Tensor:
    """(K,) log-probabilities, kept because they are asked for at every token."""
    with torch.inference_mode(False):  # or autograd could not use them later
        return torch.zeros(K, device=device).log_softmax(-1)


class BalancedPolicy(UniformPolicy):
    """Draws half of its segments from the options that cut nothing off, and half from all.

    Where several knobs truncate, hardly any option of their product leaves the tail alone, so that rollouts of the uniform
    mixture hardly show what a tail is worth (docs/log.md). In a space without such options, or of nothing else, it is the
    uniform mixture.
    """

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, K) log of the mean of two uniform distributions."""
        cutting = [knob for knob in self.space.knobs if knob.stage not in (Stage.CONTEXT, Stage.SCALE)]
        free_K = torch.tensor([all(option[knob.name] == knob.neutral for knob in cutting) for option in self.space.options])
        flat_K = torch.full((self.space.K,), 1 / self.space.K)
        pi_K = 0.5 * flat_K + 0.5 * free_K / free_K.sum() if free_K.any() else flat_K
        return pi_K.log().to(logits_NV.device).expand(len(logits_NV), -1)


class GreedyPolicy(ConstantPolicy):
    """Greedy decoding of the LM itself, whatever knobs the space holds (its option index means nothing)."""

    def __init__(self, space: KnobSpace) -> None:
        super().__init__(space, 0)
        self.segmenter = Every(1)

    def warp(self, logits_NV: Tensor, option_N: Tensor) -> Tensor:
        """(N, V) 0 at the first argmax, -inf elsewhere."""
        best_N1 = logits_NV.argmax(-1, keepdim=True)
        return torch.full_like(logits_NV, -torch.inf).scatter(-1, best_N1, 0.0)
