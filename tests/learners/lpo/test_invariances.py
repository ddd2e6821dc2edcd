"""What must change nothing, and what must change something (docs/properties.md, 3, 4, 5 and 7)."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lpo_cases import TOKEN_VARIANTS, Case, cases, close, gradient
from torch import Tensor

from latentknobs import KnobSpace, option_logps
from latentknobs.learners.lpo import OBJECTIVES, lpo_loss
from latentknobs.learners.lpo.losses import SCORES, segment_starts, uniform_like

pytestmark = pytest.mark.filterwarnings("error")


def loss(objective: str, chosen: Case, rejected: Case, **settings: object) -> Tensor:
    """The loss with each side's own reference."""
    return lpo_loss(
        objective, chosen.responses, rejected.responses, chosen.log_pi_BTK, rejected.log_pi_BTK,
        chosen.ref_BTK, rejected.ref_BTK, **settings,
    )  # fmt: skip


def score(objective: str, case: Case) -> Tensor:
    return SCORES[objective](case.log_pi_BTK, case.ref_BTK, case.responses)


def own_reference(case: Case) -> Case:
    return replace(case, ref_BTK=case.log_pi_BTK)


@given(cases(), st.sampled_from(["latent", "tokens_separate"]))
def test_a_head_that_equals_its_reference_scores_zero_and_loses_log_2(case: Case, objective: str) -> None:
    same = own_reference(case)
    assert (score(objective, same) == 0).all()
    assert close(loss(objective, same, own_reference(replace(case, theta_BTK=-case.theta_BTK)), beta=3.0), math.log(2))


@given(cases(max_k=1), st.sampled_from(["latent", "tokens_separate"]))
def test_a_single_option_loses_log_2_against_the_default_reference(case: Case, objective: str) -> None:
    log_pi_BTK, responses = case.log_pi_BTK, case.responses
    assert close(lpo_loss(objective, responses, responses, log_pi_BTK, log_pi_BTK, beta=3.0), math.log(2))


@given(cases(max_k=7))
def test_a_uniform_head_is_exactly_the_default_reference(case: Case) -> None:
    """In float64 to 1e-15: a reference rounded to float32 would leave a margin that grows with length."""
    assert close(uniform_like(case.log_pi_BTK).exp().sum(-1), 1.0, tolerance=1e-15)
    flat_BTK = torch.zeros_like(case.theta_BTK).log_softmax(-1)
    assert close(uniform_like(case.log_pi_BTK), flat_BTK, tolerance=1e-15)


@given(cases())
def test_tokens_of_eq_9_loses_log_2_exactly_when_the_knobs_favour_both_responses_alike(case: Case) -> None:
    """At the reference Eq. 9 keeps its constant: sum log P(y | options) - log P_ref(y), chosen minus rejected."""

    def offset(side: Case) -> Tensor:
        sampled_BT = side.responses.option_logps_BTK.gather(-1, side.responses.option_BT.unsqueeze(-1)).squeeze(-1)
        return torch.where(side.responses.mask_BT, sampled_BT - side.responses.base_logps_BT, 0.0).sum(-1)

    possible = own_reference(case).with_responses(option_BT=torch.zeros_like(case.responses.option_BT))
    constant_B = offset(possible)
    assert close(score("tokens", possible), constant_B)
    neutral = possible.with_responses(base_logps_BT=possible.responses.option_logps_BTK[..., 0])
    assert close(loss("tokens", neutral, neutral), math.log(2))
    assert close(loss("tokens", possible, possible), math.log(2))
    expected_B = -torch.nn.functional.logsigmoid(0.5 * constant_B)
    assert close(loss("tokens", possible, neutral, beta=0.5), expected_B)


def split_option(case: Case, option: int, own_share: float, ref_share: float) -> Case:
    """The same case with `option` in two identical copies, the second one last."""

    def shared(log_BTK: Tensor, share: float) -> Tensor:
        copy_BT1 = log_BTK[..., option : option + 1] + math.log(1 - share)
        out_BTK = torch.cat([log_BTK, copy_BT1], -1)
        out_BTK[..., option] += math.log(share)
        return out_BTK

    logps_BTK = case.responses.option_logps_BTK
    doubled_BTK = torch.cat([logps_BTK, logps_BTK[..., option : option + 1]], -1)
    split = replace(case, theta_BTK=shared(case.log_pi_BTK, own_share), ref_BTK=shared(case.ref_BTK, ref_share))
    return split.with_responses(option_logps_BTK=doubled_BTK)


shares = st.floats(0.01, 0.99)


@given(cases(), st.integers(0, 3), shares, shares)
def test_splitting_an_option_changes_no_marginal_score(case: Case, option: int, own: float, ref: float) -> None:
    split = split_option(case, option % case.theta_BTK.shape[-1], own, ref)
    assert close(score("latent", split), score("latent", case))


@given(cases(), st.integers(0, 3), shares, shares)
def test_splitting_an_option_changes_the_token_variants_by_the_ratio_of_shares(
    case: Case, option: int, own: float, ref: float
) -> None:
    option = option % case.theta_BTK.shape[-1]
    split = split_option(case, option, own, ref)
    starts_BT = segment_starts(case.responses.segment_BT, case.responses.mask_BT)
    picked_B = (starts_BT & (case.responses.option_BT == option)).sum(-1).double()
    possible = case.responses.option_logps_BTK.isfinite().all()
    for objective in TOKEN_VARIANTS if possible else TOKEN_VARIANTS[:1]:
        change_B = score(objective, split) - score(objective, case)
        assert close(change_B, picked_B * (math.log(own) - math.log(ref)), 1e-9)
    nll_B = loss("nll", split, split) - loss("nll", case, case)
    assert close(nll_B, -picked_B * math.log(own), 1e-9)


def permuted(case: Case, order_K: Tensor) -> Case:
    inverse_K = order_K.argsort()
    moved = replace(case, theta_BTK=case.theta_BTK[..., order_K], ref_BTK=case.ref_BTK[..., order_K])
    return moved.with_responses(
        option_logps_BTK=case.responses.option_logps_BTK[..., order_K], option_BT=inverse_K[case.responses.option_BT]
    )


def rows(case: Case, index_B: Tensor) -> Case:
    taken = {name: value[index_B] for name, value in vars(case.responses).items()}
    return Case(case.theta_BTK[index_B], case.ref_BTK[index_B], replace(case.responses, **taken))


@given(cases(min_k=2, removed=0.0), st.integers(0, 99), st.sampled_from(OBJECTIVES))
def test_the_order_of_options_and_of_the_batch_means_nothing(case: Case, seed: int, objective: str) -> None:
    rng = torch.Generator().manual_seed(seed)
    order_K = torch.randperm(case.theta_BTK.shape[-1], generator=rng)
    index_B = torch.randperm(len(case.theta_BTK), generator=rng)
    rejected = replace(case, theta_BTK=-case.theta_BTK)
    expected_B = loss(objective, case, rejected)
    assert close(loss(objective, permuted(case, order_K), permuted(rejected, order_K)), expected_B)
    assert close(loss(objective, rows(case, index_B), rows(rejected, index_B)), expected_B[index_B])


GRID = {"temperature": [0.0, 0.7, 2.0]}
PLAIN = KnobSpace.of(GRID)
NEUTRAL = [{"top_p": [1.0]}, {"min_p": [0.0]}, {"top_k": [0]}]
WITH_NEUTRAL = [KnobSpace.of(neutral, GRID, order=order) for neutral in NEUTRAL for order in ("transformers", "llama.cpp")]


@given(st.integers(0, 2**31))
def test_adding_a_neutral_knob_changes_no_likelihood(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(6, 9, generator=rng, dtype=torch.float64) * 3
    target_N = torch.randint(0, 9, (6,), generator=rng)
    order_N = torch.randperm(6, generator=rng)
    plain_NK = option_logps(logits_NV, target_N, PLAIN)
    for space in WITH_NEUTRAL:
        assert torch.equal(option_logps(logits_NV, target_N, space), plain_NK)
    assert torch.equal(option_logps(logits_NV[order_N], target_N[order_N], PLAIN), plain_NK[order_N])


@given(cases(min_k=2))
def test_tokens_that_do_not_depend_on_the_knob_teach_nothing(case: Case) -> None:
    alike_BTK = case.responses.option_logps_BTK[..., :1].expand_as(case.responses.option_logps_BTK)
    case = case.with_responses(option_logps_BTK=alike_BTK)
    theta_BTK = case.theta_BTK.requires_grad_()
    other = replace(case, theta_BTK=-case.theta_BTK)
    assert close(score("latent", case), 0.0)
    assert close(gradient(loss("latent", case, other, beta=5.0).sum(), theta_BTK), 0.0)
    assert gradient(score("tokens_separate", case).sum(), theta_BTK).abs().max() > 1e-6


def padded(case: Case, columns: int, segment: int, junk: float) -> Case:
    """The same responses with more masked columns, everything in masked cells replaced by junk."""
    mask_BT = torch.nn.functional.pad(case.responses.mask_BT, (0, columns))

    def grown(value: Tensor, fill: float) -> Tensor:
        pads = (0, 0, 0, columns) if value.dim() == 3 else (0, columns)
        keep = mask_BT.unsqueeze(-1) if value.dim() == 3 else mask_BT
        return torch.nn.functional.pad(value, pads).masked_fill(~keep, fill)

    r = case.responses
    return Case(
        grown(case.theta_BTK, 3.0),
        grown(case.ref_BTK, junk),
        replace(
            r,
            mask_BT=mask_BT,
            segment_BT=grown(r.segment_BT, segment),
            option_BT=grown(r.option_BT, 0),
            option_logps_BTK=grown(r.option_logps_BTK, junk),
            base_logps_BT=grown(r.base_logps_BT, junk),
        ),
    )


@given(
    cases(),
    st.sampled_from(OBJECTIVES),
    st.sampled_from(["none", "mean"]),
    st.integers(0, 3),
    st.integers(0, 9),
    st.sampled_from([5.0, -torch.inf, torch.inf, torch.nan]),
)
def test_masked_padding_never_matters(case: Case, objective: str, norm: str, columns: int, segment: int, junk: float) -> None:
    """Neither for the loss nor for its gradient, whatever stands there (segment ids included)."""
    possible = case.with_responses(option_BT=torch.zeros_like(case.responses.option_BT))
    wide = padded(possible, columns, segment, junk)

    def loss_and_gradient(side: Case) -> tuple[Tensor, Tensor]:
        theta_BTK = side.theta_BTK.requires_grad_()
        loss_B = loss(objective, side, replace(side, theta_BTK=-2 * theta_BTK), length_norm=norm)
        return loss_B, gradient(loss_B.sum(), theta_BTK)

    expected_B, expected_BTK = loss_and_gradient(possible)
    actual_B, actual_BTK = loss_and_gradient(wide)
    assert close(actual_B, expected_B)
    assert close(actual_BTK[wide.responses.mask_BT], expected_BTK[possible.responses.mask_BT])
    assert (actual_BTK[~wide.responses.mask_BT] == 0).all()
