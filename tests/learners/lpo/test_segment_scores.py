"""Scores of segments in one list against those of `lpo`, which pads and knows segments of several tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentknobs.data.segment_batches import Segments
from latentknobs.errors import UnreachableTokenError
from latentknobs.learners.lpo import OBJECTIVES, Objective, Responses
from latentknobs.learners.lpo.losses import SCORES, tokens_separate_score, uniform_like
from latentknobs.learners.lpo.segment_losses import segment_scores


def made(seed: int, U: int, S: int, K: int, removed: float) -> tuple[Responses, Tensor, Tensor]:
    """Responses of up to S segments, a head's log-probabilities and a reference's, all padded, in float64."""
    random = torch.Generator().manual_seed(seed)
    mask_US = torch.arange(S) < torch.randint(0, S + 1, (U, 1), generator=random)
    logps_USK = -torch.rand(U, S, K, generator=random, dtype=torch.float64) * 4
    logps_USK[..., 1:] = logps_USK[..., 1:].masked_fill(torch.rand(U, S, K - 1, generator=random) < removed, -torch.inf)
    pi_USK, ref_USK = torch.randn(2, U, S, K, generator=random, dtype=torch.float64).log_softmax(-1)
    option_US = torch.zeros(U, S, dtype=torch.long)
    base_US = -torch.rand(U, S, generator=random, dtype=torch.float64)
    return Responses(logps_USK, torch.arange(S).expand(U, -1), mask_US, option_US, base_US), pi_USK, ref_USK


def listed(told: Responses) -> Segments:
    assert told.option_BT is not None and told.base_logps_BT is not None
    padded = {"logps_NK": told.option_logps_BTK, "option_N": told.option_BT, "base_N": told.base_logps_BT}
    columns = {name: value[told.mask_BT] for name, value in padded.items()}
    return Segments(torch.zeros(int(told.mask_BT.sum()), 1), columns, told.mask_BT.sum(-1))


@given(
    st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6), st.integers(2, 5), st.sampled_from([0.0, 0.6]),
    st.sampled_from(OBJECTIVES), st.booleans(), st.sampled_from(["none", "mean"]),
)  # fmt: skip
def test_scores_and_gradients_are_those_of_lpo(
    seed: int, U: int, S: int, K: int, removed: float, objective: Objective, with_reference: bool, norm: str
) -> None:
    told, pi_USK, ref_USK = made(seed, U, S, K, removed)
    if not with_reference:
        ref_USK = uniform_like(pi_USK)
    ours, plain = pi_USK.clone().requires_grad_(), pi_USK.clone().requires_grad_()
    ref_MK = ref_USK[told.mask_BT] if with_reference else None
    ours_U = segment_scores(objective, norm, ours[told.mask_BT], ref_MK, listed(told))  # type: ignore[arg-type]
    if objective == "nll":
        plain_U = tokens_separate_score(plain, torch.zeros_like(plain), told)
    else:
        plain_U = SCORES[objective](plain, ref_USK, told)
    if norm == "mean":
        plain_U = plain_U / told.mask_BT.sum(-1).clamp(min=1)
    assert torch.allclose(ours_U, plain_U, rtol=0, atol=1e-9)
    found, wanted = (torch.autograd.grad(score_U.sum(), of)[0] for score_U, of in ((ours_U, ours), (plain_U, plain)))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-9)


def test_a_head_that_rules_out_every_possible_option_scores_minus_infinity_without_nan() -> None:
    logps_MK = torch.tensor([[0.0, -math.inf], [0.0, -1.0]], dtype=torch.float64)
    segments = Segments(torch.zeros(2, 1), {"logps_NK": logps_MK}, torch.ones(2, dtype=torch.long))
    log_pi_MK = torch.tensor([[-math.inf, 0.0], [-1.0, -0.5]], dtype=torch.float64).requires_grad_()
    score_U = segment_scores("latent", "none", log_pi_MK, None, segments)
    assert score_U[0] == -math.inf and score_U[1].isfinite()
    score_U[1].backward()
    assert log_pi_MK.grad is not None and log_pi_MK.grad.isfinite().all()


def test_a_segment_that_no_option_can_produce_is_named() -> None:
    told, pi_USK, _ = made(3, 3, 2, 2, 0.0)
    told.mask_BT[:] = True
    told.option_logps_BTK[2, 1] = -torch.inf
    with pytest.raises(UnreachableTokenError, match="row 2 of the batch"):
        segment_scores("latent", "none", pi_USK[told.mask_BT], None, listed(told))
