"""Rules from the literature and from practice, exact, as policies: what a learned head has to beat.

Each is a formula of the LM's next-token distribution, and of what the rule remembers. Joint constants (temperature with top-p,
min-p or top-n-sigma) need no class of their own: they are `ConstantPolicy`, by name `constant:temperature=1.5,min_p=0.1`.
"""

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.heads.features import read_features
from latentknobs.heads.segmenters import Delimiter, Every, parse_level
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.rows import wide
from latentknobs.policies.base import Choice, Policy, State
from latentknobs.tensors import pick

COLDEST = 1e-6  # a temperature below it is 0: logits divided by it may overflow float32


def check_setting(rule: str, name: str, value: float, low: float, high: float = math.inf) -> float:
    """The setting of a rule; ConfigError if it is not a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        wanted = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise ConfigError(f"The policy {rule!r} takes for {name} a number {wanted}, not {value!r}.")
    return float(value)


class TemperatureRule(Policy):
    """A temperature for each token, by a formula."""

    draws = False

    def __init__(self) -> None:
        self.space, self.segmenter = KnobSpace.of({"temperature": [1.0]}), Every(1)

    @abstractmethod
    def temperature(self, seen: Observation) -> Tensor:
        """(N,) float64, the temperature of each row."""

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """The temperature of the formula; 0 where it is below one millionth."""
        temperature_N = self.temperature(seen)
        return Choice(temperature_N.masked_fill(temperature_N < COLDEST, 0.0).unsqueeze(-1))


class EDT(TemperatureRule):
    """Entropy-based dynamic temperature: T = base * share^(theta / H) (Zhang et al. 2024, arXiv 2403.14541).

    Args:
        base: T where the entropy is large.
        theta: nats; the larger, the colder.
        share: 0.8 in the paper.
    """

    def __init__(self, base: float, theta: float, share: float = 0.8) -> None:
        super().__init__()
        self.base = check_setting("edt", "base", base, 0)
        self.theta = check_setting("edt", "theta", theta, 0)
        self.share = check_setting("edt", "share", share, 0, 1)

    def temperature(self, seen: Observation) -> Tensor:
        """(N,) its formula; at entropy 0 the limit, which is 0 for theta > 0 and share < 1."""
        entropy_N = entropy(seen)
        exponent_N = torch.where(entropy_N > 0, self.theta / entropy_N, math.inf if self.theta else 0.0)
        power_N = torch.pow(torch.full_like(exponent_N, self.share), exponent_N)
        return self.base * power_N


class Dynatemp(TemperatureRule):
    """The dynamic temperature of llama.cpp: T = low + (high - low) * (H / ln V)^exponent (`llama_sampler_temp_ext`)."""

    def __init__(self, low: float, high: float, exponent: float = 1.0) -> None:
        super().__init__()
        self.low = check_setting("dynatemp", "low", low, 0)
        self.high = check_setting("dynatemp", "high", high, self.low)
        self.exponent = check_setting("dynatemp", "exponent", exponent, 0)

    def temperature(self, seen: Observation) -> Tensor:
        """(N,) its formula, with the entropy as a share of its maximum."""
        share_N = (entropy(seen) / math.log(max(seen.logits_NV.shape[-1], 2))).clamp(0, 1)
        return self.low + (self.high - self.low) * share_N**self.exponent


def entropy(seen: Observation) -> Tensor:
    """(N,) float64, the entropy (nats) of the LM's next-token distribution."""
    return read_features(["entropy"], seen.hidden_ND, seen.logits_NV).squeeze(-1).double().clamp(min=0)


class MirostatState(NamedTuple):
    """What Mirostat remembers: the bound (bits), and the surprise of every token in the newest truncated distribution."""

    mu_N: Tensor
    surprise_NV: Tensor


class Mirostat(Policy):
    """Mirostat 2: keep tokens of at most mu bits of surprise (Basu et al. 2020, arXiv 2007.14966; `llama_sampler_mirostat_v2`).

    mu starts at 2 tau and follows the tokens drawn: mu <- mu - eta (S - tau), with S the surprise of the token in the
    truncated distribution. A surprise of at most mu is a probability of at least 2^-mu: the value of the knob
    `epsilon_cutoff`. The best token always stays.

    Args:
        tau: the surprise that is aimed at, in bits per token.
        eta: how fast mu follows.
    """

    draws = False

    def __init__(self, tau: float, eta: float = 0.1) -> None:
        self.space, self.segmenter = KnobSpace.of({"epsilon_cutoff": [0.0]}), Every(1)
        self.tau = check_setting("mirostat", "tau", tau, 0)
        self.eta = check_setting("mirostat", "eta", eta, 0)

    def start(self, rows: int, device: torch.device | str = "cpu") -> MirostatState:
        """mu = 2 tau; no distribution yet."""
        mu_N = torch.full((rows,), 2 * self.tau, dtype=torch.float64, device=device)
        return MirostatState(mu_N, torch.zeros(rows, 0, dtype=torch.float64, device=device))

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """The cutoff 2^-mu."""
        assert state is not None
        highest = self.space.knobs[0].value_range()[1]
        cutoff_N = torch.exp2(-state.mu_N).clamp(max=highest)
        prob_NV = wide(seen.logits_NV).softmax(-1)
        best_N1 = prob_NV.amax(-1, keepdim=True)
        kept_NV = (prob_NV >= cutoff_N.to(prob_NV.dtype).unsqueeze(-1)) | (prob_NV == best_N1)
        mass_N1 = (prob_NV * kept_NV).sum(-1, keepdim=True)
        return Choice(cutoff_N.unsqueeze(-1), state=MirostatState(state.mu_N, mass_N1.log2() - prob_NV.log2()))

    def observe(self, token_N: Tensor, state: State) -> MirostatState:
        """mu follows the surprise of the token; padding, which may be impossible, does not move it."""
        surprise_N = pick(state.surprise_NV, token_N).double()
        error_N = torch.where(surprise_N.isfinite(), surprise_N - self.tau, 0.0)
        return MirostatState(state.mu_N - self.eta * error_N, state.surprise_NV)


class TwoTemperatures(Policy):
    """A hand rule: cold where a test says so, hot elsewhere; tokens below `min_p` of the best one's probability are cut."""

    draws = False

    def __init__(self, cold: float, hot: float, min_p: float = 0.0) -> None:
        self.space = KnobSpace.of({"temperature": [1.0]}, *([{"min_p": [0.0]}] if min_p else []))
        self.segmenter = Every(1)
        self.cold = check_setting("two temperatures", "cold", cold, 0)
        self.hot = check_setting("two temperatures", "hot", hot, 0)
        self.min_p = check_setting("two temperatures", "min_p", min_p, 0, 1)

    @abstractmethod
    def is_cold(self, seen: Observation, state: State) -> Tensor:
        """(N,) bool."""

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """One of the two temperatures, and the rule's min-p."""
        is_cold_N = self.is_cold(seen, state)
        hot_N = torch.full(is_cold_N.shape, self.hot, dtype=torch.float64, device=is_cold_N.device)
        temperature_N = hot_N.masked_fill(is_cold_N, self.cold)
        values = [temperature_N, torch.full_like(temperature_N, self.min_p)]
        return Choice(torch.stack(values[: len(self.space.knobs)], -1))


class SentenceStart(TwoTemperatures):
    """Cold at the first token of the response, and after a token that ends in one of some characters.

    Args:
        after: the characters, e.g. `.!?`.
        tokenizer: finds the tokens that end in them.
    """

    needs = ("previous_NL", "position_N")

    def __init__(self, cold: float, hot: float, min_p: float = 0.0, after: str = ".!?", tokenizer: object = None) -> None:
        super().__init__(cold, hot, min_p)
        delimiter = parse_level(f"delimiter:{after}", tokenizer)
        assert isinstance(delimiter, Delimiter)
        self.delimiter = delimiter

    def is_cold(self, seen: Observation, state: State) -> Tensor:
        """(N,) where a segment of the delimiter begins."""
        return self.delimiter.begins(seen.position_N, seen.newest_N)


class Opening(TwoTemperatures):
    """One temperature for the first `tokens` tokens of a response, another one for the rest."""

    needs = ("position_N",)

    def __init__(self, cold: float, hot: float, tokens: float = 8, min_p: float = 0.0) -> None:
        super().__init__(cold, hot, min_p)
        self.tokens = check_setting("opening", "tokens", tokens, 1)

    def is_cold(self, seen: Observation, state: State) -> Tensor:
        """(N,) among the first tokens."""
        return seen.position_N < self.tokens
