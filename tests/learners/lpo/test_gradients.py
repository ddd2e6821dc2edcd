"""Why the marginal loss is the quiet one: its gradient is the posterior mean of the token variant's (docs/properties.md, 6)."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lpo_cases import Case, cases, close, gradient, logsumexp, segments_of, slow_joint
from torch import Tensor

from latentknobs import KnobSpace, option_logps
from latentknobs.learners.lpo import OBJECTIVES, Responses, lpo_loss
from latentknobs.learners.lpo.losses import latent_score, log_marginals, tokens_separate_score


def posterior(case: Case, b: int, positions: list[int]) -> list[float]:
    """P(k | segment, h), by Bayes' rule in plain Python."""
    joint_K = slow_joint(case.log_pi_BTK, case.responses, b, positions)
    return [math.exp(joint - logsumexp(joint_K)) for joint in joint_K]


@given(cases())
def test_the_gradient_of_a_marginal_is_the_posterior_over_options(case: Case) -> None:
    log_pi_BTK = case.log_pi_BTK.requires_grad_()
    expected_BTK = torch.zeros_like(log_pi_BTK)
    for b in range(len(log_pi_BTK)):
        for positions in segments_of(case.responses, b):
            expected_BTK[b, positions[0]] = torch.tensor(posterior(case, b, positions), dtype=torch.float64)
    assert close(gradient(log_marginals(log_pi_BTK, case.responses).sum(), log_pi_BTK), expected_BTK)


def one_row(case: Case) -> Case:
    kept = {name: value[:1] for name, value in vars(case.responses).items()}
    return Case(case.theta_BTK[:1], case.ref_BTK[:1], replace(case.responses, **kept))


def token_gradients(case: Case) -> tuple[Tensor, Tensor]:
    """(A,) posterior probability of every assignment of options to segments, and (A, T*K) the token variant's gradients."""
    groups = segments_of(case.responses, 0)
    chances = [posterior(case, 0, positions) for positions in groups]
    theta_BTK = case.theta_BTK.detach().requires_grad_()
    weights, found = [], []
    for assignment in itertools.product(range(theta_BTK.shape[-1]), repeat=len(groups)):
        option_BT = torch.zeros_like(case.responses.segment_BT)
        for positions, k in zip(groups, assignment, strict=True):
            option_BT[0, positions] = k
        drawn = replace(case.responses, option_BT=option_BT)
        score_B = tokens_separate_score(theta_BTK.log_softmax(-1), case.ref_BTK, drawn)
        found.append(gradient(score_B.sum(), theta_BTK).flatten())
        weights.append(math.prod(chances[s][k] for s, k in enumerate(assignment)))
    return torch.tensor(weights, dtype=torch.float64), torch.stack(found)


def latent_gradient(case: Case) -> Tensor:
    theta_BTK = case.theta_BTK.detach().requires_grad_()
    return gradient(latent_score(theta_BTK.log_softmax(-1), case.ref_BTK, case.responses).sum(), theta_BTK).flatten()


@given(cases(max_k=3, max_t=3).map(one_row))
def test_the_marginal_gradient_is_the_posterior_mean_of_the_token_gradient(case: Case) -> None:
    """So, given the responses, drawing options adds variance and nothing else; the marginal gradient has none of it."""
    weight_A, token_AG = token_gradients(case)
    mean_G = weight_A @ token_AG
    assert close(weight_A.sum(), 1.0)
    assert close(latent_gradient(case), mean_G)
    variance = (weight_A @ (token_AG - mean_G).square()).sum()
    is_certain = (weight_A > 1 - 1e-9).any()
    assert variance == pytest.approx(0, abs=1e-7) if is_certain else variance > 1e-12


@given(cases(min_k=2, max_k=3), st.integers(0, 99))
def test_options_that_were_sampled_matter_to_the_token_loss_and_not_to_the_marginal_one(case: Case, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    K = case.theta_BTK.shape[-1]
    other_BT = (case.responses.option_BT + 1 + torch.randint(0, K - 1, (1,), generator=rng)) % K
    theta_BTK = case.theta_BTK.requires_grad_()
    log_pi_BTK = theta_BTK.log_softmax(-1)

    def pair_gradient(objective: str, option_BT: Tensor) -> Tensor:
        chosen = replace(case.responses, option_BT=option_BT)
        flat_BTK = torch.full_like(theta_BTK, -math.log(K))
        return gradient(lpo_loss(objective, chosen, chosen, log_pi_BTK, flat_BTK).sum(), theta_BTK)

    drawn_BT = case.responses.option_BT
    assert torch.equal(pair_gradient("latent", drawn_BT), pair_gradient("latent", other_BT))
    assert (pair_gradient("tokens_separate", drawn_BT) - pair_gradient("tokens_separate", other_BT)).abs().max() > 1e-6


THREE_TEMPERATURES = [KnobSpace.of({"temperature": grid}) for grid in ([0.0, 0.5, 1.5], [0.2, 1.0, 3.0])]


@given(st.integers(0, 2**31), st.sampled_from(THREE_TEMPERATURES))
def test_over_responses_and_options_the_mean_agrees_and_the_variance_is_smaller(seed: int, space: KnobSpace) -> None:
    """Rao-Blackwell by enumeration of every (token, option): any reward-weighted gradient, exact mean and variance."""
    rng = torch.Generator().manual_seed(seed)
    V, K = 5, space.K
    logits_V = torch.randn(V, generator=rng, dtype=torch.float64)
    theta_K = torch.randn(K, generator=rng, dtype=torch.float64)
    reward_V = torch.randn(V, generator=rng, dtype=torch.float64)
    logps_VK = option_logps(logits_V.expand(V, V), torch.arange(V), space)
    chance_VK = (theta_K.log_softmax(-1) + logps_VK).exp()
    ones = torch.ones(V * K, 1, dtype=torch.long)
    every = Responses(
        option_logps_BTK=logps_VK.repeat_interleave(K, 0).unsqueeze(1),
        segment_BT=0 * ones,
        mask_BT=ones.bool(),
        option_BT=torch.arange(K).repeat(V).unsqueeze(1),
    )
    theta_BTK = theta_K.expand(V * K, 1, K).clone().requires_grad_()
    ref_BTK = torch.full_like(theta_BTK, -math.log(K))

    def mean_and_variance(score: object) -> tuple[Tensor, Tensor]:
        found_BK = gradient(score(theta_BTK.log_softmax(-1), ref_BTK, every).sum(), theta_BTK).squeeze(1)
        weighted_BK = reward_V.repeat_interleave(K).unsqueeze(1) * found_BK
        mean_K = chance_VK.flatten() @ weighted_BK
        return mean_K, (chance_VK.flatten() @ (weighted_BK - mean_K).square()).sum()

    token_mean_K, token_variance = mean_and_variance(tokens_separate_score)
    latent_mean_K, latent_variance = mean_and_variance(latent_score)
    assert close(latent_mean_K, token_mean_K)
    assert latent_variance < token_variance - 1e-12


@given(cases(removed=0.9), st.sampled_from(OBJECTIVES), st.sampled_from(["none", "mean"]))
def test_losses_and_gradients_are_finite_where_options_remove_tokens(case: Case, objective: str, norm: str) -> None:
    possible = replace(case.responses, option_BT=torch.zeros_like(case.responses.option_BT))
    theta_BTK = case.theta_BTK.requires_grad_()
    log_pi_BTK = theta_BTK.log_softmax(-1)
    loss_B = lpo_loss(objective, possible, possible, log_pi_BTK, -log_pi_BTK, beta=2.0, length_norm=norm)
    assert loss_B.isfinite().all()
    assert gradient(loss_B.sum(), theta_BTK).isfinite().all()


JOINT_GRID = {"temperature": [0.0, 1.0], "top_k": [0, 2], "top_p": [0.5, 1.0], "min_p": [0.0, 0.3]}
JOINT_SPACES = [KnobSpace.of(JOINT_GRID, order=order) for order in ("transformers", "llama.cpp", "vllm")]


@given(st.integers(0, 2**31), st.sampled_from(JOINT_SPACES))
def test_temperature_zero_and_truncation_in_the_grid_leave_no_nan(seed: int, space: KnobSpace) -> None:
    """Real likelihoods, extreme logits: every value is finite or exactly -inf, and so is every gradient of a marginal."""
    rng = torch.Generator().manual_seed(seed)
    B, T, V = 2, 4, 6
    logits_NV = torch.randn(B * T, V, generator=rng, dtype=torch.float64) * 30
    target_N = torch.randint(0, V, (B * T,), generator=rng)
    logps_BTK = option_logps(logits_NV, target_N, space).view(B, T, space.K)
    assert not logps_BTK.isnan().any() and (logps_BTK <= 0).all() and logps_BTK.isneginf().any()
    responses = Responses(logps_BTK, torch.tensor([[0, 0, 1, 2]] * B), torch.ones(B, T, dtype=torch.bool))
    theta_BTK = torch.randn(B, T, space.K, generator=rng, dtype=torch.float64).requires_grad_()
    loss_B = lpo_loss("latent", responses, responses, theta_BTK.log_softmax(-1), (-theta_BTK).log_softmax(-1))
    assert loss_B.isfinite().all() and gradient(loss_B.sum(), theta_BTK).isfinite().all()


@given(cases())
def test_a_segment_no_option_can_produce_has_marginal_minus_infinity_and_no_gradient(case: Case) -> None:
    """Exactly -inf, and zero gradient rather than NaN, so that one such row cannot poison a batch."""
    lost_BTK = case.responses.option_logps_BTK.clone()
    lost_BTK[0, 0] = -torch.inf
    case = case.with_responses(option_logps_BTK=lost_BTK)
    log_pi_BTK = case.log_pi_BTK.requires_grad_()
    marginal_BS = log_marginals(log_pi_BTK, case.responses)
    assert marginal_BS[0, 0] == -torch.inf and marginal_BS.flatten()[1:].isfinite().all()
    found_BTK = gradient(marginal_BS.sum(), log_pi_BTK)
    assert found_BTK.isfinite().all() and (found_BTK[0, 0] == 0).all()
