"""Entropy and KL against plain Python, at their limits; the margin is what the loss is made of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lpo_cases import Case, cases, close, gradient
from torch.nn.functional import logsigmoid

from latentknobs.errors import ConfigError
from latentknobs.learners.lpo import OBJECTIVES, Responses, entropy, kl_divergence, lpo_loss, lpo_margin
from latentknobs.learners.lpo.losses import SCORES, uniform_like


@given(cases())
def test_entropy_and_kl_are_their_sums(case: Case) -> None:
    for pi_K, ref_K, spread, kl in zip(
        case.log_pi_BTK.flatten(0, 1).tolist(), case.ref_BTK.flatten(0, 1).tolist(),
        entropy(case.log_pi_BTK).flatten().tolist(), kl_divergence(case.log_pi_BTK, case.ref_BTK).flatten().tolist(), strict=True,
    ):  # fmt: skip
        assert spread == pytest.approx(-sum(math.exp(p) * p for p in pi_K), abs=1e-12)
        assert kl == pytest.approx(sum(math.exp(p) * (p - r) for p, r in zip(pi_K, ref_K, strict=True)), abs=1e-12)


@given(cases())
def test_kl_is_never_negative_zero_at_home_and_to_uniform_it_is_the_missing_entropy(case: Case) -> None:
    log_pi = case.log_pi_BTK
    assert (kl_divergence(log_pi, case.ref_BTK) > -1e-12).all()
    assert (kl_divergence(log_pi, log_pi) == 0).all()
    assert close(kl_divergence(log_pi, uniform_like(log_pi)), math.log(log_pi.shape[-1]) - entropy(log_pi))


@given(cases(removed=0.0), st.sampled_from(["latent", "tokens_separate", "tokens"]), st.sampled_from(["none", "mean"]))
def test_the_loss_is_the_log_sigmoid_of_the_margin(case: Case, objective: str, norm: str) -> None:
    sides = (case.responses, case.responses, case.log_pi_BTK, -case.log_pi_BTK, case.ref_BTK, case.ref_BTK)
    margin_B = lpo_margin(objective, *sides, length_norm=norm)
    assert close(lpo_loss(objective, *sides, beta=0.7, length_norm=norm), -logsigmoid(0.7 * margin_B))
    if norm == "none":
        chosen, rejected = (SCORES[objective](pi, case.ref_BTK, case.responses) for pi in (case.log_pi_BTK, -case.log_pi_BTK))
        assert close(margin_B, chosen - rejected)


@given(cases())
def test_two_sides_that_change_places_change_the_sign(case: Case) -> None:
    there = lpo_margin("latent", case.responses, case.responses, case.log_pi_BTK, case.ref_BTK)
    back = lpo_margin("latent", case.responses, case.responses, case.ref_BTK, case.log_pi_BTK)
    assert close(there, -back)


def test_an_unknown_objective_is_refused_by_the_margin_too() -> None:
    with pytest.raises(ConfigError, match="no objective 'latnt'"):
        lpo_margin("latnt", None, None, None, None)  # type: ignore[arg-type]


@given(cases(), st.integers(0, 3), st.integers(0, 3))
def test_rows_are_those_rows_of_everything(case: Case, start: int, count: int) -> None:
    part = case.responses.rows(slice(start, start + count))
    for name, value in vars(case.responses).items():
        assert torch.equal(getattr(part, name), value[start : start + count])


@pytest.mark.parametrize("T", [0, 3])
def test_responses_without_any_segment_score_zero(T: int) -> None:
    """Rows of no columns at all, and of columns that are all mask."""
    zero_BT = torch.zeros(2, T, dtype=torch.long)
    empty = Responses(torch.zeros(2, T, 3), zero_BT, zero_BT.bool(), zero_BT, zero_BT.float())
    log_pi_BTK = torch.zeros(2, T, 3, requires_grad=True)
    for objective in OBJECTIVES:
        for norm in ("none", "mean"):
            loss_B = lpo_loss(objective, empty, empty, log_pi_BTK, log_pi_BTK, length_norm=norm)
            assert close(loss_B, 0.0 if objective == "nll" else math.log(2))
            assert (gradient(loss_B.sum(), log_pi_BTK) == 0).all()
