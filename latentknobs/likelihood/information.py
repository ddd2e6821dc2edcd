"""The information view of decoding (Chang et al. 2023, arXiv 2311.10083): what a distribution trades, in nats.

Every decoding rule is the distribution pi that maximises, at each token, a weighted sum of three terms: sensibleness
-KL(pi || P), which ties it to the LM's own distribution P; diversity H(pi); and attribution E_pi[log P - log P_without], the
information that it takes from the evidence. docs/guidance.md derives the rules from the sums.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """The three terms of each of N distributions, in nats. `attribution_N` is None without evidence."""

    sensibleness_N: Tensor
    diversity_N: Tensor
    attribution_N: Tensor | None = None


def terms(policy_NV: Tensor, logits_NV: Tensor, second_NV: Tensor | None = None) -> Terms:
    """What the distributions with logits `policy_NV` trade, beside the LM's own and, if known, those without the evidence."""
    log_pi_NV, logp_NV = policy_NV.log_softmax(-1), logits_NV.log_softmax(-1)
    pi_NV = log_pi_NV.exp()
    attribution_N = None if second_NV is None else expectation(pi_NV, logp_NV - second_NV.log_softmax(-1))
    return Terms(-expectation(pi_NV, log_pi_NV - logp_NV), -expectation(pi_NV, log_pi_NV), attribution_N)


def kl(logits_NV: Tensor, other_NV: Tensor) -> Tensor:
    """(N,) KL(P || Q) >= 0 of two distributions by their logits."""
    logp_NV = logits_NV.log_softmax(-1)
    return expectation(logp_NV.exp(), logp_NV - other_NV.log_softmax(-1)).clamp(min=0)


def expectation(pi_NV: Tensor, value_NV: Tensor) -> Tensor:
    """(N,) sum of pi * value, where what has no probability does not count, even if it is infinite."""
    return torch.where(pi_NV > 0, pi_NV * value_NV, 0.0).sum(-1)
