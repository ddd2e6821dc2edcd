"""The four objectives as losses: equations written out, beta, length normalisation, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lpo_cases import Case, cases, close, gradient, make_case, segments_of
from torch import Tensor
from torch.nn.functional import logsigmoid

from latentknobs.errors import ConfigError, UnreachableTokenError
from latentknobs.learners.lpo import OBJECTIVES, Responses, lpo_loss
from latentknobs.learners.lpo.losses import SCORES, latent_score


def pair(case: Case, rejected: Case, objective: str, **settings: object) -> Tensor:
    return lpo_loss(
        objective, case.responses, rejected.responses, case.log_pi_BTK, rejected.log_pi_BTK,
        case.ref_BTK, rejected.ref_BTK, **settings,
    )  # fmt: skip


def by_hand() -> tuple[Responses, Tensor]:
    """One row, two segments of one token, two options: pi = (.25, .75) then (.5, .5); P(y|k) = (.2, .8) then (.6, 0)."""
    logps_BTK = torch.tensor([[[0.2, 0.8], [0.6, 0.0]]], dtype=torch.float64).log()
    responses = Responses(
        logps_BTK,
        segment_BT=torch.tensor([[0, 1]]),
        mask_BT=torch.ones(1, 2, dtype=torch.bool),
        option_BT=torch.tensor([[1, 0]]),
        base_logps_BT=torch.tensor([[0.5, 0.3]], dtype=torch.float64).log(),
    )
    return responses, torch.tensor([[[0.25, 0.75], [0.5, 0.5]]], dtype=torch.float64).log()


def test_every_equation_on_a_pair_worked_out_by_hand() -> None:
    chosen, log_pi_BTK = by_hand()
    other_BTK = torch.tensor([[[0.5, 0.5], [0.1, 0.4]]], dtype=torch.float64).log()
    rejected = replace(chosen, option_BT=torch.tensor([[0, 0]]), option_logps_BTK=other_BTK)
    latent_c = math.log((0.25 * 0.2 + 0.75 * 0.8) / (0.5 * 0.2 + 0.5 * 0.8)) + math.log(0.3 / 0.3)
    latent_r = math.log(0.5 / 0.5) + math.log(0.25 / 0.25)
    separate_c = math.log(0.75 / 0.5) + math.log(0.5 / 0.5)
    separate_r = math.log(0.25 / 0.5) + math.log(0.5 / 0.5)
    tokens_c = separate_c + math.log(0.8 / 0.5) + math.log(0.6 / 0.3)
    tokens_r = separate_r + math.log(0.5 / 0.5) + math.log(0.1 / 0.3)
    printed = math.log(0.75) + math.log(0.5) - math.log(0.25) - math.log(0.5)
    margins = {"latent": latent_c - latent_r, "tokens_separate": separate_c - separate_r, "tokens": tokens_c - tokens_r,
               "tokens_printed": printed}  # fmt: skip
    for objective, margin in margins.items():
        loss_B = lpo_loss(objective, chosen, rejected, log_pi_BTK, log_pi_BTK, beta=0.7)
        assert loss_B.item() == pytest.approx(math.log(1 + math.exp(-0.7 * margin)), abs=1e-12), objective
    nll_B = lpo_loss("nll", chosen, rejected, log_pi_BTK, log_pi_BTK)
    assert nll_B.item() == pytest.approx(-math.log(0.75) - math.log(0.5), abs=1e-12)


def test_the_default_reference_is_uniform_whatever_the_lengths() -> None:
    """The paper drops the uniform reference from Eq. 10; between responses of unequal length it does not cancel."""
    chosen, log_pi_BTK = by_hand()
    short = replace(chosen, mask_BT=torch.tensor([[True, False]]))
    loss_B = lpo_loss("tokens_separate", short, chosen, log_pi_BTK, log_pi_BTK, beta=1.0)
    assert loss_B.item() == pytest.approx(math.log(1 + math.exp(math.log(0.5 / 0.5))), abs=1e-12)
    loss_B = lpo_loss("tokens_printed", short, chosen, log_pi_BTK, log_pi_BTK, beta=1.0)
    assert loss_B.item() == pytest.approx(math.log(1 + math.exp(math.log(0.5))), abs=1e-12), (
        "Eq. 10 as printed prefers short ones"
    )
    sharp_BTK = torch.tensor([[[0.25, 0.75], [0.2, 0.8]]], dtype=torch.float64).log()
    loss_B = lpo_loss("tokens_separate", short, chosen, sharp_BTK, sharp_BTK, beta=1.0)
    assert loss_B.item() == pytest.approx(math.log(1 + math.exp(math.log(0.2 / 0.5))), abs=1e-12)


@given(cases(removed=0.0), st.sampled_from(["latent", "tokens_separate", "tokens"]), st.floats(0, 4))
def test_beta_scales_the_margin_inside_the_sigmoid(case: Case, objective: str, beta: float) -> None:
    rejected = replace(case, theta_BTK=-case.theta_BTK)
    margin_B = SCORES[objective](case.log_pi_BTK, case.ref_BTK, case.responses)
    margin_B = margin_B - SCORES[objective](rejected.log_pi_BTK, rejected.ref_BTK, rejected.responses)
    assert close(pair(case, rejected, objective, beta=beta), -logsigmoid(beta * margin_B))
    assert close(pair(case, rejected, objective, beta=0.0), math.log(2))
    assert close(pair(rejected, case, objective, beta=beta), -logsigmoid(-beta * margin_B))


@given(cases(removed=0.0), st.sampled_from(["latent", "tokens_separate", "tokens"]))
def test_mean_divides_each_score_by_its_own_number_of_segments(case: Case, objective: str) -> None:
    rejected = make_case(seed=int(case.responses.mask_BT.sum()), B=len(case.theta_BTK), T=4, K=case.theta_BTK.shape[-1])
    rejected = rejected.with_responses(option_BT=torch.zeros_like(rejected.responses.option_BT))
    means = []
    for side in (case, rejected):
        count_B = torch.tensor([len(segments_of(side.responses, b)) for b in range(len(side.theta_BTK))])
        means.append(SCORES[objective](side.log_pi_BTK, side.ref_BTK, side.responses) / count_B)
    assert close(pair(case, rejected, objective, beta=1.0, length_norm="mean"), -logsigmoid(means[0] - means[1]))


@given(cases(), st.sampled_from(["none", "mean"]))
def test_nll_is_minus_the_log_probability_of_the_chosen_options_alone(case: Case, norm: str) -> None:
    for beta in (0.1, 9.0):
        loss_B = pair(case, replace(case, theta_BTK=-case.theta_BTK), "nll", beta=beta, length_norm=norm)
        for b in range(len(loss_B)):
            firsts = [positions[0] for positions in segments_of(case.responses, b)]
            picked = [case.log_pi_BTK[b, t, case.responses.option_BT[b, t]] for t in firsts]
            assert close(loss_B[b], -sum(picked) / (len(picked) if norm == "mean" else 1))
    no_reference_B = lpo_loss("nll", case.responses, case.responses, case.log_pi_BTK, case.log_pi_BTK, length_norm=norm)
    assert torch.equal(no_reference_B, loss_B)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_are_not_reduced_and_rows_do_not_mix(objective: str) -> None:
    case = make_case(seed=5, B=3, T=4, K=3, removed=0.0)
    theta_BTK = case.theta_BTK.requires_grad_()
    loss_B = pair(case, replace(case, theta_BTK=-theta_BTK), objective)
    assert loss_B.shape == (3,)
    touched_B = gradient(loss_B[1], theta_BTK).abs().sum((1, 2)) > 0
    assert touched_B.tolist() == [False, True, False]


def test_nothing_flows_into_the_default_reference() -> None:
    case = make_case(seed=5, B=2, T=3, K=3)
    log_pi_BTK = case.log_pi_BTK.requires_grad_()
    loss_B = lpo_loss("latent", case.responses, case.responses, log_pi_BTK, -log_pi_BTK.detach())
    assert gradient(loss_B.sum(), log_pi_BTK).abs().sum() > 0


def test_an_unknown_objective_is_refused_with_the_nearest_name() -> None:
    case = make_case(seed=0, B=1, T=1, K=2)
    with pytest.raises(ConfigError, match=r"There is no objective 'latnet'\. Did you mean \"latent\"\? Known: .*tokens_separate"):
        pair(case, case, "latnet")


def test_an_unknown_length_normalisation_is_refused() -> None:
    case = make_case(seed=0, B=1, T=1, K=2)
    with pytest.raises(ConfigError, match=r"length normalisation 'sum'.*Known: mean, none"):
        pair(case, case, "latent", length_norm="sum")


def test_a_response_the_reference_cannot_produce_is_refused_not_nan() -> None:
    """-inf minus -inf is no log-ratio: say so instead of training on NaN."""
    case = make_case(seed=0, B=2, T=3, K=2, level="token")
    lost_BTK = case.responses.option_logps_BTK.clone()
    lost_BTK[1, 0] = -torch.inf
    lost = case.with_responses(option_logps_BTK=lost_BTK)
    with pytest.raises(UnreachableTokenError, match=r"row 1\b.*no option.*untruncated option"):
        latent_score(lost.log_pi_BTK, lost.ref_BTK, lost.responses)
