"""Learners: how scored responses become a policy. `base` is the contract; what its authors need is importable from here."""

from latentknobs.data.columns import BASE_LOGPS, OPTION_LOGPS, SAMPLED_OPTION, Column
from latentknobs.data.examples import Batch, Example
from latentknobs.learners.base import Fitted, Inputs, Learner, Loss
from latentknobs.learners.rewards import advantages

__all__ = [
    "BASE_LOGPS", "OPTION_LOGPS", "SAMPLED_OPTION", "Batch", "Column", "Example", "Fitted", "Inputs", "Learner", "Loss",
    "advantages",
]  # fmt: skip
