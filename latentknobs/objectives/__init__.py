"""Pure loss functions of tensors."""

from latentknobs.objectives.lpo import OBJECTIVES, LengthNorm, Objective, Responses, lpo_loss

__all__ = ["OBJECTIVES", "LengthNorm", "Objective", "Responses", "lpo_loss"]
