"""Rules that people use instead of a learned head, as policies: EDT, dynatemp, Mirostat, hand rules.

Continuous rules choose the nearest temperature of a fine grid. min-p, top-n-sigma and joint settings need no class: they are
constant policies of their own spaces. Rules that carry state from token to token serve plain rollouts only (no beams, no
`record`), where all rows of a batch stand at the same position and, because they say `keeps_rows`, stay together.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentknobs.heads.features import read_features
from latentknobs.heads.segmenters import Every, Segmenter
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy, Policy

FINE = tuple(round(0.05 * i, 2) for i in range(41))  # 0 to 2


def fine_space() -> KnobSpace:
    """Temperatures 0 to 2 in steps of 0.05."""
    return KnobSpace.of({"temperature": FINE})


def one_hot(option_N: Tensor, options: int) -> Tensor:
    """(N, K) log-probabilities that choose these options for sure."""
    return torch.nn.functional.one_hot(option_N, options).double().log()


class EntropyRule(Policy):
    """Temperature as a function of the entropy (nats) of the LM's next-token distribution."""

    def __init__(self, temperature: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__(fine_space(), Every(1), "greedy")
        self.temperature = temperature
        self.grid_K = torch.tensor(FINE)

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, K) one-hot at the grid point nearest to the rule's temperature."""
        entropy_N = read_features(["entropy"], hidden_ND, logits_NV).squeeze(-1)
        wanted_N1 = self.temperature(entropy_N, logits_NV.shape[-1]).unsqueeze(-1)
        return one_hot((wanted_N1 - self.grid_K.to(wanted_N1)).abs().argmin(-1), len(FINE))


def edt(base: float, theta: float, share: float = 0.8) -> EntropyRule:
    """T = base * share^(theta / H), entropy-based dynamic temperature (Zhang et al. 2024, arXiv 2403.14541)."""
    return EntropyRule(lambda entropy_N, size: base * torch.pow(share, theta / entropy_N.clamp(min=1e-6)))


def dynatemp(low: float, high: float, exponent: float) -> EntropyRule:
    """T = low + (high - low) * (H / ln V)^exponent, the dynamic temperature of llama.cpp."""

    def temperature(entropy_N: Tensor, size: int) -> Tensor:
        return low + (high - low) * (entropy_N / math.log(size)).clamp(0, 1) ** exponent

    return EntropyRule(temperature)


class Watch(Segmenter):
    """Every token is a segment; the token before is remembered, for policies that carry state.

    Decoding asks a segmenter before each token but the first of a response, where a segment begins whatever it says: nothing
    remembered means a new response.
    """

    level = "token"
    _previous_N: Tensor | None = None

    def _begins(self, position_BT: Tensor, previous_BT: Tensor) -> Tensor:
        self._previous_N = previous_BT[:, -1] if int(position_BT[0, -1]) else None
        return torch.ones_like(position_BT, dtype=torch.bool)

    def previous(self) -> Tensor | None:
        """(N,) the token before this one, None at the first of a response. To be asked once for each token."""
        previous_N, self._previous_N = self._previous_N, None
        return previous_N


class Mirostat(Policy):
    """Mirostat 2 (Basu et al. 2020, arXiv 2007.14966; in the form of llama.cpp): keep tokens of at most mu bits of surprise.

    mu starts at 2 tau and follows the tokens drawn: mu <- mu - eta (S - tau), S the surprise of the token among those kept.
    """

    keeps_rows = True

    def __init__(self, tau: float, eta: float) -> None:
        self.watch = Watch()
        super().__init__(KnobSpace.of({"temperature": [1.0]}), self.watch, "greedy")
        self.tau, self.eta = tau, eta
        self.mu_N = torch.zeros(0)
        self.surprise_NV = torch.zeros(0, 0)

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, 1) zeros; brings mu up to date."""
        previous_N = self.watch.previous()
        if previous_N is None:
            self.mu_N = torch.full((len(logits_NV),), 2 * self.tau, device=logits_NV.device)
        else:
            drawn_N = self.surprise_NV.gather(-1, previous_N.unsqueeze(-1)).squeeze(-1)
            drawn_N = torch.where(drawn_N.isfinite(), drawn_N, self.tau)  # padding after a response's end
            self.mu_N = self.mu_N - self.eta * (drawn_N - self.tau)
        return torch.zeros(len(logits_NV), 1, device=logits_NV.device)

    def warp(self, logits_NV: Tensor, option_N: Tensor) -> Tensor:
        """(N, V) logits of the tokens kept, -inf elsewhere; the best token always stays."""
        surprise_NV = -logits_NV.float().log_softmax(-1) / math.log(2)
        least_N1 = surprise_NV.amin(-1, keepdim=True)
        kept_NV = (surprise_NV <= self.mu_N.unsqueeze(-1)) | (surprise_NV == least_N1)
        warped_NV = logits_NV.masked_fill(~kept_NV, -torch.inf)
        self.surprise_NV = -warped_NV.float().log_softmax(-1) / math.log(2)
        return warped_NV


class FreshDraws(Policy):
    """A sequence-level head whose option is drawn anew for each token: Eq. 6 of arXiv 2411.09661 for AD_seq.

    Drawing an option and then a token is drawing from the mixture of the options' distributions. At token level, drawn options
    are therefore the exact mixture. At sequence level one draw for the whole response is the exact mixture of *responses*,
    and this policy is the mixture token by token, which is another distribution.
    """

    keeps_rows = True

    def __init__(self, head: HeadPolicy) -> None:
        self.watch = Watch()
        super().__init__(head.space, self.watch, "sample")
        self.head = head
        self.first_NK = torch.zeros(0, 0)

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, K) what the head said before the first token."""
        if self.watch.previous() is None:
            self.first_NK = self.head.log_pi(hidden_ND, logits_NV)
        return self.first_NK


class TwoTemperatures(Policy):
    """A hand rule: cold where a test says so, hot elsewhere.

    Args:
        is_cold: of the token before (None at the first of a response) and the logits.
        min_p: tokens below this share of the best one's probability are cut, everywhere.
    """

    keeps_rows = True

    def __init__(self, cold: float, hot: float, is_cold: Callable[[Tensor | None, Tensor], Tensor], min_p: float = 0.0) -> None:
        self.watch = Watch()
        cut = {"min_p": [min_p]} if min_p else {}
        super().__init__(KnobSpace.of({"temperature": [cold, hot]} | cut), self.watch, "greedy")
        self.is_cold = is_cold

    def log_pi(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        """(N, 2) one-hot."""
        return one_hot((~self.is_cold(self.watch.previous(), logits_NV)).long(), 2)
