"""Latent preference optimisation (arXiv 2411.09661): its losses, its pairs, and its settings."""

from latentknobs.learners.lpo.losses import OBJECTIVES, Responses, lpo_loss, lpo_margin
from latentknobs.learners.lpo.settings import LengthNorm, Objective, PairRule, Settings
from latentknobs.learners.penalties import entropy, kl_divergence

__all__ = [
    "OBJECTIVES", "LengthNorm", "Objective", "PairRule", "Responses", "Settings", "entropy", "kl_divergence",
    "lpo_loss", "lpo_margin",
]  # fmt: skip
