"""Random LPO inputs for the property tests, and the obvious loops they are compared with."""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from latentknobs.learners.lpo import Responses

TOKEN_VARIANTS = ("tokens_separate", "tokens")


@dataclass(frozen=True)
class Case:
    """Head logits, a reference and responses: everything an objective reads about one side of a pair."""

    theta_BTK: Tensor
    ref_BTK: Tensor
    responses: Responses

    @property
    def log_pi_BTK(self) -> Tensor:
        return self.theta_BTK.log_softmax(-1)

    def with_responses(self, **changes: Tensor) -> "Case":
        return replace(self, responses=replace(self.responses, **changes))


def make_case(seed: int, B: int, T: int, K: int, level: str = "mixed", removed: float = 0.3) -> Case:
    """Rows of unequal length; option 0 can produce every token, each other option loses it with probability `removed`."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    length_B = torch.randint(1, T + 1, (B,), generator=rng)
    length_B[0] = T
    mask_BT = torch.arange(T) < length_B.unsqueeze(1)
    cut = {"token": 2.0, "mixed": 0.5, "sequence": -1.0}[level]
    begins_BT = uniform(B, T) < cut
    begins_BT[:, 0] = True
    segment_BT = torch.where(mask_BT, begins_BT.long().cumsum(1) - 1, 0)
    logps_BTK = (normal(B, T, K) * 2 - 2).clamp(max=0.0)
    lost_BTK = uniform(B, T, K) < removed
    lost_BTK[..., 0] = False
    option_BSK = torch.randint(0, K, (B, T), generator=rng)
    responses = Responses(
        option_logps_BTK=logps_BTK.masked_fill(lost_BTK, -torch.inf),
        segment_BT=segment_BT,
        mask_BT=mask_BT,
        option_BT=option_BSK.gather(1, segment_BT),
        base_logps_BT=(normal(B, T) - 2).clamp(max=0.0),
    )
    return Case(normal(B, T, K), normal(B, T, K).log_softmax(-1), responses)


def cases(
    max_k: int = 4, level: str | None = None, removed: float | None = None, max_t: int = 5, min_k: int = 1
) -> st.SearchStrategy[Case]:
    return st.builds(
        make_case,
        seed=st.integers(0, 2**31),
        B=st.integers(1, 3),
        T=st.integers(1, max_t),
        K=st.integers(min_k, max_k),
        level=st.just(level) if level else st.sampled_from(["token", "mixed", "sequence"]),
        removed=st.just(removed) if removed is not None else st.sampled_from([0.0, 0.3, 0.9]),
    )


def segments_of(responses: Responses, b: int) -> list[list[int]]:
    """The real positions of each segment of row b."""
    length = int(responses.mask_BT[b].sum())
    return [list(group) for _, group in itertools.groupby(range(length), key=lambda t: int(responses.segment_BT[b, t]))]


def slow_joint(log_pi_BTK: Tensor, responses: Responses, b: int, positions: list[int]) -> list[float]:
    """log pi_k + log P(segment | k) for every k, one addition at a time."""
    K = log_pi_BTK.shape[-1]
    return [
        float(log_pi_BTK[b, positions[0], k]) + sum(float(responses.option_logps_BTK[b, t, k]) for t in positions)
        for k in range(K)
    ]


def logsumexp(terms: list[float]) -> float:
    top = max(terms)
    return top if top == -math.inf else top + math.log(sum(math.exp(term - top) for term in terms))


def slow_marginal(log_pi_BTK: Tensor, responses: Responses, b: int) -> float:
    """log P'(row b), by loops."""
    return sum(logsumexp(slow_joint(log_pi_BTK, responses, b, positions)) for positions in segments_of(responses, b))


def gradient(value: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, of, allow_unused=True, retain_graph=True)
    return torch.zeros_like(of) if found is None else found


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-10) -> bool:
    """Equal up to rounding, infinities exactly; NaN is never close."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    return torch.allclose(actual, expected.expand_as(actual), rtol=tolerance, atol=tolerance)
