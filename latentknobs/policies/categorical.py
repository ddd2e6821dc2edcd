"""Policies that choose among the options of their space: a distribution per segment, and a rule to pick from it."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.heads.features import HIDDEN, check_features, needed_by, read_features
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies.base import Choice, Policy, State
from latentknobs.tensors import pick

Pick = Literal["greedy", "sample"]


class CategoricalPolicy(Policy):
    """Chooses an option for every segment.

    Attributes:
        pick: `greedy` takes the most probable option (Eq. 4 of arXiv 2411.09661), `sample` draws it (Eq. 5).
    """

    def __init__(self, space: KnobSpace, segmenter: Segmenter, pick: Pick) -> None:
        if pick not in get_args(Pick):
            raise ConfigError(f"pick={pick!r} is not a way to take an option. Choose one of {', '.join(get_args(Pick))}.")
        self.space = space
        self.segmenter = segmenter
        self.pick = pick

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether options are drawn."""
        return self.pick == "sample"

    @abstractmethod
    def log_pi(self, seen: Observation, state: State = None) -> Tensor:
        """(N, K) log-probabilities of the options."""

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """An option of `log_pi`, by `pick`."""
        return self.picked(self.log_pi(seen, state), uniform_N)

    def picked(self, log_pi_NK: Tensor, uniform_N: Tensor) -> Choice:
        """The choice from these log-probabilities."""
        values_KJ = option_values(self.space, log_pi_NK.device)
        if self.pick == "greedy":
            option_N = log_pi_NK.argmax(-1)
            return Choice(values_KJ.index_select(0, option_N), option_N)
        option_N = draw_options(log_pi_NK, uniform_N)
        log_prob_N = pick(log_pi_NK, option_N)
        return Choice(values_KJ.index_select(0, option_N), option_N, log_prob_N)


class HeadPolicy(CategoricalPolicy):
    """A learned head. `features` names what it reads (see `latentknobs.heads.features`)."""

    def __init__(
        self, head: OptionHead, space: KnobSpace, segmenter: Segmenter, features: Sequence[str] = (HIDDEN,),
        pick: Pick = "greedy",
    ) -> None:  # fmt: skip
        super().__init__(space, segmenter, pick)
        self.head = head
        self.features = check_features(features)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The budgets among its features."""
        return needed_by(self.features)

    def log_pi(self, seen: Observation, state: State = None) -> Tensor:
        """(N, K) from the head."""
        with torch.no_grad():
            feature_NF = read_features(self.features, seen.hidden_ND, seen.logits_NV, seen.parts)
            log_pi_NK: Tensor = self.head(feature_NF)
        return log_pi_NK


def draw_options(log_pi_NK: Tensor, uniform_N: Tensor) -> Tensor:
    """(N,) option indices by inverse CDF of uniforms in [0, 1)."""
    cdf_NK = log_pi_NK.double().exp().cumsum(-1)
    threshold_N1 = (uniform_N * cdf_NK[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cdf_NK, threshold_N1, right=True).squeeze(-1).clamp(max=log_pi_NK.shape[-1] - 1)


@lru_cache(maxsize=64)
def option_values(space: KnobSpace, device: torch.device) -> Tensor:
    """(K, J) `space.values_KJ`, kept because it is read at every token; not to be changed in place."""
    with torch.inference_mode(False):  # or autograd could not use it later
        return space.values_KJ(device=device)
