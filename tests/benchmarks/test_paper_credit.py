"""Eq. 11 token by token for one distribution per response, against the formula written out."""

import torch

from benchmarks.paper.credit import of_first_token
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.learners.lpo import Responses
from latentknobs.learners.lpo.losses import latent_score, log_marginals


def test_the_cache_of_first_tokens_gives_the_sum_over_tokens_of_the_mixtures() -> None:
    torch.manual_seed(0)
    lengths, K = [3, 5], 4
    start_R1 = torch.tensor([0, 3, 8])
    logps_NK = -torch.rand(8, K, dtype=torch.float64) * 3
    cache = of_first_token(FeatureCache(torch.randn(8, 6), {"logps_NK": logps_NK}, start_R1))
    head = torch.nn.Linear(6, K).double()
    segments = cache.segments(torch.tensor([0, 1]))
    mask_BS = segments.mask_US
    feature_BSF, logps_BSK = torch.zeros(2, 5, 6, dtype=torch.float64), torch.zeros(2, 5, K, dtype=torch.float64)
    feature_BSF[mask_BS], logps_BSK[mask_BS] = segments.feature_MF.double(), segments["logps_NK"]
    responses = Responses(logps_BSK, torch.arange(5).expand(2, -1), mask_BS)
    log_pi_BSK = head(feature_BSF).log_softmax(-1)
    got_BS = log_marginals(log_pi_BSK, responses)
    for b, (first, length) in enumerate(zip([0, 3], lengths, strict=True)):
        pi_K = log_pi_BSK[b, 0]
        expected = sum((pi_K + logps_NK[first + t]).logsumexp(-1) for t in range(length))
        assert torch.isclose(got_BS[b].sum(), torch.as_tensor(expected))
        exact = (pi_K + logps_NK[first : first + length].sum(0)).logsumexp(-1)
        assert not torch.isclose(torch.as_tensor(expected), exact)  # the two are different objectives
    assert latent_score(log_pi_BSK, log_pi_BSK, responses).abs().max() == 0
