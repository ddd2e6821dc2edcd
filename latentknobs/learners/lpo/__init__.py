"""Pure loss functions of tensors."""

from latentknobs.learners.lpo.losses import OBJECTIVES, LengthNorm, Objective, Responses, lpo_loss, lpo_margin
from latentknobs.learners.lpo.penalties import entropy, kl_divergence

__all__ = ["OBJECTIVES", "LengthNorm", "Objective", "Responses", "entropy", "kl_divergence", "lpo_loss", "lpo_margin"]
