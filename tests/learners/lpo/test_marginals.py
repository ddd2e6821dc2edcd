"""The marginal likelihood of segments: bounds, exactness, levels (docs/properties.md, 2 and 8)."""

import itertools

import pytest
import torch
from hypothesis import given
from lpo_cases import Case, cases, close, make_case, segments_of, slow_joint, slow_marginal

from latentknobs import KnobSpace, option_logps
from latentknobs.heads.segmenters import Every, Segmenter, WholeResponse
from latentknobs.learners.lpo import Responses
from latentknobs.learners.lpo.losses import latent_score, log_marginals, segment_starts


@given(cases())
def test_marginals_equal_the_loop_over_segments_and_options(case: Case) -> None:
    marginal_BS = log_marginals(case.log_pi_BTK, case.responses)
    for b in range(len(marginal_BS)):
        assert close(marginal_BS[b].sum(), slow_marginal(case.log_pi_BTK, case.responses, b))
        assert (marginal_BS[b, len(segments_of(case.responses, b)) :] == 0).all()


@given(cases())
def test_a_marginal_is_at_least_every_joint_probability(case: Case) -> None:
    marginal_BS = log_marginals(case.log_pi_BTK, case.responses)
    for b in range(len(marginal_BS)):
        for s, positions in enumerate(segments_of(case.responses, b)):
            for joint in slow_joint(case.log_pi_BTK, case.responses, b, positions):
                assert marginal_BS[b, s] >= joint - 1e-12


@given(cases())
def test_a_one_hot_head_gives_the_likelihood_of_its_option(case: Case) -> None:
    K = case.theta_BTK.shape[-1]
    for k in range(K):
        one_hot_BTK = torch.full_like(case.theta_BTK, -torch.inf)
        one_hot_BTK[..., k] = 0.0
        marginal_BS = log_marginals(one_hot_BTK, case.responses)
        for b in range(len(marginal_BS)):
            for s, positions in enumerate(segments_of(case.responses, b)):
                assert close(marginal_BS[b, s], case.responses.option_logps_BTK[b, positions, k].sum())


@given(cases(level="token"))
def test_one_token_per_segment_is_the_token_level_of_eq_11(case: Case) -> None:
    mask_BT, logps_BTK = case.responses.mask_BT, case.responses.option_logps_BTK
    ratio_BT = (case.log_pi_BTK + logps_BTK).logsumexp(-1) - (case.ref_BTK + logps_BTK).logsumexp(-1)
    expected_B = torch.where(mask_BT, ratio_BT, 0.0).sum(-1)
    assert close(latent_score(case.log_pi_BTK, case.ref_BTK, case.responses), expected_B)


@given(cases(level="sequence"))
def test_one_segment_is_the_exact_sequence_sum(case: Case) -> None:
    logps_BK = torch.where(case.responses.mask_BT.unsqueeze(-1), case.responses.option_logps_BTK, 0.0).sum(1)
    expected_B1 = (case.log_pi_BTK[:, 0] + logps_BK).logsumexp(-1, keepdim=True)
    assert close(log_marginals(case.log_pi_BTK, case.responses), expected_B1)


V, LENGTH = 3, 3


def response_tree(space: KnobSpace, segmenter: Segmenter, seed: int) -> tuple[Responses, torch.Tensor]:
    """All V**LENGTH responses of a random LM and a random head, both of which read the prefix."""
    rng = torch.Generator().manual_seed(seed)
    texts = list(itertools.product(range(V), repeat=LENGTH))
    prefixes = [text[:t] for text in texts for t in range(LENGTH)]
    logits = {prefix: torch.randn(V, generator=rng, dtype=torch.float64) for prefix in dict.fromkeys(prefixes)}
    thetas = {prefix: torch.randn(space.K, generator=rng, dtype=torch.float64) for prefix in logits}
    token_BT = torch.tensor(texts)
    logps_NK = option_logps(torch.stack([logits[p] for p in prefixes]), token_BT.flatten(), space)
    log_pi_NK = torch.stack([thetas[p] for p in prefixes]).log_softmax(-1)
    previous_BT = torch.cat([torch.zeros_like(token_BT[:, :1]), token_BT[:, :-1]], 1)
    shape = (len(texts), LENGTH, space.K)
    responses = Responses(logps_NK.view(shape), segmenter.segments(previous_BT), torch.ones_like(token_BT, dtype=torch.bool))
    return responses, log_pi_NK.view(shape)


@pytest.mark.parametrize("segmenter", [Every(1), Every(2), WholeResponse()], ids=lambda s: s.level)
@pytest.mark.parametrize("order", ["transformers", "llama.cpp"])
def test_probabilities_of_all_responses_sum_to_one_at_every_level(segmenter: Segmenter, order: str) -> None:
    space = KnobSpace.of({"temperature": [0.0, 0.5, 1.5], "top_p": [0.6, 1.0]}, order=order)
    responses, log_pi_BTK = response_tree(space, segmenter, seed=1)
    marginal_B = log_marginals(log_pi_BTK, responses).sum(-1)
    assert close(marginal_B.exp().sum(), 1.0)
    for b in range(len(marginal_B)):
        assert close(marginal_B[b], slow_marginal(log_pi_BTK, responses, b))


def test_token_and_sequence_levels_are_different_mixtures() -> None:
    space = KnobSpace.of({"temperature": [0.3, 1.5]})
    token, log_pi_BTK = response_tree(space, Every(1), seed=1)
    sequence, _ = response_tree(space, WholeResponse(), seed=1)
    flat_BTK = torch.full_like(log_pi_BTK, 0.5).log()
    gap_B = log_marginals(flat_BTK, token).sum(-1) - log_marginals(flat_BTK, sequence).sum(-1)
    assert gap_B.abs().max() > 0.1


def test_the_head_is_read_at_the_first_token_of_a_segment_only() -> None:
    case = make_case(seed=3, B=2, T=5, K=3)
    starts_BT = segment_starts(case.responses.segment_BT, case.responses.mask_BT)
    assert 0 < starts_BT.sum() < starts_BT.numel()
    changed_BTK = torch.where(starts_BT.unsqueeze(-1), case.log_pi_BTK, 7.0)
    assert close(log_marginals(changed_BTK, case.responses), log_marginals(case.log_pi_BTK, case.responses))
    assert segment_starts(torch.tensor([[0, 0, 1, 2, 2]]), torch.tensor([[True, True, True, True, False]])).tolist() == [
        [True, False, True, True, False]
    ]
