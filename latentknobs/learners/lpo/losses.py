"""The LPO family (arXiv 2411.09661, section 3.2) as pure functions of tensors.

Every score is the log-ratio log P'(response) / P_ref(response) of one response, un-reduced over the batch, before beta.
`lpo_loss` turns the scores of chosen and rejected responses into -log sigmoid. Nothing here knows what a knob does:
the language model enters only through `option_logps_BTK`, which has no gradient because the LM is frozen.
"""

import math
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from latentknobs.errors import ConfigError, UnreachableTokenError, did_you_mean
from latentknobs.learners.lpo.settings import LengthNorm, Objective
from latentknobs.tensors import logsumexp, pick, segment_sum

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True)
class Responses:
    """A batch of responses as the frozen LM left them. T is the longest response; shorter rows are masked.

    Attributes:
        option_logps_BTK: log P(y_t | option k), -inf where the option removes y_t.
        segment_BT: segment ids 0, 1, ... in each row.
        mask_BT: True at response tokens.
        option_BT: the option that each token was sampled with (only the token variants need it).
        base_logps_BT: log P(y_t) under the LM without knobs (only `tokens` needs it).
    """

    option_logps_BTK: Tensor
    segment_BT: Tensor
    mask_BT: Tensor
    option_BT: Tensor | None = None
    base_logps_BT: Tensor | None = None

    def rows(self, kept: slice | Tensor) -> "Responses":
        """Some of the rows, by a slice or by their indices."""
        return replace(self, **{name: value[kept] for name, value in vars(self).items() if value is not None})


def segment_starts(segment_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) True at the first token of each segment."""
    before_BT = torch.cat([torch.full_like(segment_BT[:, :1], -1), segment_BT[:, :-1]], 1)
    return (segment_BT != before_BT) & mask_BT


def log_marginals(log_pi_BTK: Tensor, responses: Responses) -> Tensor:
    """(B, S) log sum_k pi_k prod_{t in segment} P(y_t | k), the exact marginal of each segment; 0 beyond a row's last.

    With one token per segment this is the inner sum of Eq. 11; with one segment it is the exact sequence marginal, which
    the paper does not distinguish. pi is read at the first token of a segment: it must not see the segment itself.
    """
    segment_BT, mask_BT = responses.segment_BT, responses.mask_BT
    starts_BT = segment_starts(segment_BT, mask_BT)
    S = int(segment_BT.max()) + 1 if segment_BT.numel() else 0
    log_pi_BSK = segment_sum(torch.where(starts_BT.unsqueeze(-1), log_pi_BTK, 0.0), segment_BT, S)
    logps_BTK = torch.where(mask_BT.unsqueeze(-1), responses.option_logps_BTK, 0.0).to(log_pi_BTK.dtype)
    marginal_BS = logsumexp(log_pi_BSK + segment_sum(logps_BTK, segment_BT, S))
    exists_BS = segment_sum(starts_BT.long(), segment_BT, S) > 0
    return torch.where(exists_BS, marginal_BS, 0.0)


def latent_score(log_pi_BTK: Tensor, ref_log_pi_BTK: Tensor, responses: Responses) -> Tensor:
    """(B,) Eq. 11: sum over segments of log marginal under pi minus log marginal under the reference.

    UnreachableTokenError if no option of the reference can produce some response: there is no log-ratio to it.
    """
    ref_BS = log_marginals(ref_log_pi_BTK, responses)
    if (lost_B := ref_BS.isneginf().any(-1)).any():
        raise unreachable(int(lost_B.nonzero()[0]))
    return (log_marginals(log_pi_BTK, responses) - ref_BS).sum(-1)


def unreachable(row: int) -> UnreachableTokenError:
    """The error about the response in a row of a batch."""
    return UnreachableTokenError(
        f"The response in row {row} of the batch holds a segment that no option can produce, so its probability is 0 and its "
        "log-ratio undefined. Leave the response out, or give the space an untruncated option."
    )


def tokens_separate_score(log_pi_BTK: Tensor, ref_log_pi_BTK: Tensor, responses: Responses) -> Tensor:
    """(B,) Eq. 10: sum over segments of log pi(sampled option) minus the same under the reference.

    The paper omits the reference because its uniform one cancels between chosen and rejected of equal length; here it
    stays, so that later rounds and unequal lengths are right. `tokens_printed_score` is without.
    """
    option_BT = _required(responses.option_BT, "option_BT", "all but `latent`")
    ratio_BT = pick(log_pi_BTK, option_BT) - pick(ref_log_pi_BTK, option_BT)
    return torch.where(segment_starts(responses.segment_BT, responses.mask_BT), ratio_BT, 0.0).sum(-1)


def tokens_printed_score(log_pi_BTK: Tensor, ref_log_pi_BTK: Tensor, responses: Responses) -> Tensor:
    """(B,) Eq. 10 as the paper prints it: sum over segments of log pi(sampled option), whatever the reference."""
    return tokens_separate_score(log_pi_BTK, torch.zeros_like(log_pi_BTK), responses)


def tokens_score(log_pi_BTK: Tensor, ref_log_pi_BTK: Tensor, responses: Responses) -> Tensor:
    """(B,) Eq. 9: Eq. 10 plus log P(y | sampled options) - log P_ref(y), the LM without knobs.

    With a frozen LM the added part is a constant of each response: it weighs pairs, it does not steer the head.
    """
    option_BT = _required(responses.option_BT, "option_BT", "all but `latent`")
    base_BT = _required(responses.base_logps_BT, "base_logps_BT", "tokens")
    sampled_BT = pick(responses.option_logps_BTK, option_BT)
    offset_BT = torch.where(responses.mask_BT, sampled_BT - base_BT, 0.0)
    return tokens_separate_score(log_pi_BTK, ref_log_pi_BTK, responses) + offset_BT.sum(-1).to(log_pi_BTK.dtype)


SCORES = {
    "latent": latent_score, "tokens_separate": tokens_separate_score, "tokens_printed": tokens_printed_score,
    "tokens": tokens_score,
}  # fmt: skip


def lpo_margin(
    objective: Objective, chosen: Responses, rejected: Responses, log_pi_chosen_BTK: Tensor, log_pi_rejected_BTK: Tensor,
    ref_chosen_BTK: Tensor | None = None, ref_rejected_BTK: Tensor | None = None, length_norm: LengthNorm = "none",
) -> Tensor:  # fmt: skip
    """(B,) score of chosen minus score of rejected, before beta: above 0 where the head orders a pair rightly.

    Arguments and errors are those of `lpo_loss`; `nll` is scored by Eq. 10.
    """
    _check(objective, length_norm)
    score = SCORES.get(objective, tokens_separate_score)
    ref_c = uniform_like(log_pi_chosen_BTK) if ref_chosen_BTK is None else ref_chosen_BTK
    ref_r = uniform_like(log_pi_rejected_BTK) if ref_rejected_BTK is None else ref_rejected_BTK
    score_c = score(log_pi_chosen_BTK, ref_c, chosen) / _lengths(chosen, length_norm)
    return score_c - score(log_pi_rejected_BTK, ref_r, rejected) / _lengths(rejected, length_norm)


def lpo_loss(
    objective: Objective, chosen: Responses, rejected: Responses, log_pi_chosen_BTK: Tensor, log_pi_rejected_BTK: Tensor,
    ref_chosen_BTK: Tensor | None = None, ref_rejected_BTK: Tensor | None = None, beta: float = 0.1,
    length_norm: LengthNorm = "none",
) -> Tensor:  # fmt: skip
    """(B,) the un-reduced loss: -log sigmoid(beta * (score of chosen - score of rejected)), Eq. 9, 10 or 11.

    Args:
        objective: `latent` (Eq. 11), `tokens_separate` (Eq. 10), `tokens_printed` (the same without a reference),
            `tokens` (Eq. 9), or `nll`: minus the log-probability
            of the chosen response's sampled options (section 4.6.1), which uses neither beta nor the reference.
        ref_chosen_BTK, ref_rejected_BTK: reference log-probabilities over options; None is uniform.
        length_norm: `mean` divides each score by its number of segments, `none` sums, as in the paper.

    Raises:
        ConfigError: an unknown objective or length normalisation.
        UnreachableTokenError: `latent`, and the reference cannot produce a response.
    """
    _check(objective, length_norm)
    if objective == "nll":
        return -tokens_printed_score(log_pi_chosen_BTK, log_pi_chosen_BTK, chosen) / _lengths(chosen, length_norm)
    margin_B = lpo_margin(
        objective, chosen, rejected, log_pi_chosen_BTK, log_pi_rejected_BTK, ref_chosen_BTK, ref_rejected_BTK, length_norm
    )
    return -logsigmoid(beta * margin_B)


def uniform_like(log_pi_BTK: Tensor) -> Tensor:
    """The uniform distribution over options, in the shape of `log_pi_BTK`, without gradient."""
    return torch.full_like(log_pi_BTK, -math.log(log_pi_BTK.shape[-1]))


def _check(objective: str, length_norm: str) -> None:
    if objective not in OBJECTIVES:
        raise ConfigError(f"There is no objective {objective!r}. {did_you_mean(objective, OBJECTIVES)}")
    if length_norm not in get_args(LengthNorm):
        known = did_you_mean(length_norm, get_args(LengthNorm))
        raise ConfigError(f"There is no length normalisation {length_norm!r}. {known}")


def _lengths(responses: Responses, length_norm: LengthNorm) -> Tensor | float:
    if length_norm == "none":
        return 1.0
    return segment_starts(responses.segment_BT, responses.mask_BT).sum(-1).clamp(min=1)


def _required(tensor: Tensor | None, name: str, objectives: str) -> Tensor:
    if tensor is None:
        raise ConfigError(f"Responses without {name} cannot be scored: {objectives} need it. Pass it, or use `latent`.")
    return tensor
