"""Learners: how scored responses become a policy. `base` is the contract; what its authors need is importable from here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentknobs.data.columns import BASE_LOGPS, OPTION_LOGPS, SAMPLED_OPTION, Column
    from latentknobs.data.examples import Batch, Example
    from latentknobs.learners.base import Fitted, Inputs, Learner, Loss
    from latentknobs.learners.rewards import advantages

_WHERE = {
    "data.columns": ("BASE_LOGPS", "OPTION_LOGPS", "SAMPLED_OPTION", "Column"),
    "data.examples": ("Batch", "Example"),
    "learners.rewards": ("advantages",),
    "learners.base": ("Fitted", "Inputs", "Learner", "Loss"),
}
__all__ = [
    "BASE_LOGPS", "OPTION_LOGPS", "SAMPLED_OPTION", "Batch", "Column", "Example", "Fitted", "Inputs", "Learner", "Loss",
    "advantages",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loaded on first use: the settings of a learner need none of it."""
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"latentknobs.{module}"), name)
    raise AttributeError(f"module 'latentknobs.learners' has no attribute {name!r}")
