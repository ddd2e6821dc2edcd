"""Decoding hyperparameters as latent variables that a small head learns to choose, on a frozen language model.

Names are loaded on first use, so that `import latentknobs` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from latentknobs import errors as errors
    from latentknobs.adapter import KnobAdapter as KnobAdapter
    from latentknobs.context import Context as Context
    from latentknobs.evaluation.api import evaluate as evaluate
    from latentknobs.knob import ContextKnob as ContextKnob
    from latentknobs.knob import DecodingKnob as DecodingKnob
    from latentknobs.knob import ScalingKnob as ScalingKnob
    from latentknobs.knob import Stage as Stage
    from latentknobs.knob import TruncationKnob as TruncationKnob
    from latentknobs.likelihood import apply_options as apply_options
    from latentknobs.likelihood import option_logps as option_logps
    from latentknobs.objectives import lpo_loss as lpo_loss
    from latentknobs.registry import register as register
    from latentknobs.space import KnobSpace as KnobSpace
    from latentknobs.training.train import train as train

_WHERE = {
    "Context": "context",
    "ContextKnob": "knob",
    "DecodingKnob": "knob",
    "ScalingKnob": "knob",
    "TruncationKnob": "knob",
    "Stage": "knob",
    "register": "registry",
    "KnobSpace": "space",
    "option_logps": "likelihood",
    "apply_options": "likelihood",
    "lpo_loss": "objectives",
    "KnobAdapter": "adapter",
    "train": "training.train",
    "evaluate": "evaluation.api",
}
__all__ = sorted([*_WHERE, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'latentknobs' has no attribute {name!r}")
    return getattr(import_module(f"latentknobs.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
