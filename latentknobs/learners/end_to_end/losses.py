"""The objectives as pure functions of tokens' log-probabilities, un-reduced."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from latentknobs.learners.end_to_end.settings import Reweight


def token_weights(
    logp_M: Tensor, base_M: Tensor, is_best_M: Tensor, *, easy_mask: float = 0.0, reweight: Reweight = "none"
) -> Tensor:
    """(M,) how much each token counts in the likelihood; without gradient.

    Args:
        logp_M, base_M: log-probabilities under the head's values, and under the LM itself.
        is_best_M: whether the LM finds the token most probable.
        easy_mask: taken off the weight of such tokens: the expectation of the published mask, which drops this share at random.
        reweight: the dynamic fine-tuning of the published code: tokens count with their probability.
    """
    weight_M = torch.where(is_best_M, 1.0 - easy_mask, 1.0).to(base_M)
    if reweight != "none":
        weight_M = weight_M * (base_M if reweight == "base" else logp_M.detach()).exp()
    return weight_M


def preference_loss(chosen_B: Tensor, rejected_B: Tensor, beta: float) -> Tensor:
    """(B,) -log sigmoid(beta * margin), the margin between the log-ratios of two responses.

    Eq. 11 of arXiv 2411.09661 where the values are a function of the context: nothing is marginalised.

    Args:
        chosen_B, rejected_B: log P(y | values of the head) - log P(y | values of the reference).
    """
    return -logsigmoid(beta * (chosen_B - rejected_B))


def ranking_loss(lower_NJ: Tensor, higher_NJ: Tensor, margin: float) -> Tensor:
    """(N, J) how far two values are from being ordered with a margin: max(0, margin - (higher - lower))."""
    return (margin - (higher_NJ - lower_NJ)).clamp(min=0)
