"""Regularisers of a head: its entropy, and its KL divergence from a reference. Un-reduced, in nats."""

from torch import Tensor


def entropy(log_pi_NK: Tensor) -> Tensor:
    """(N,) entropy of each distribution over options: the bonus of Williams & Peng (1991) and A3C (arXiv 1602.01783)."""
    return -(log_pi_NK.exp() * log_pi_NK).sum(-1)


def kl_divergence(log_pi_NK: Tensor, ref_log_pi_NK: Tensor) -> Tensor:
    """(N,) KL(pi, reference) of each distribution over options: the penalty of arXiv 1909.08593, exact, not sampled."""
    return (log_pi_NK.exp() * (log_pi_NK - ref_log_pi_NK)).sum(-1)
