"""Decoding hyperparameters as latent variables that a small head learns to choose, on a frozen language model.

Names are loaded on first use, so that `import latentknobs` is quick.
"""

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from latentknobs import errors as errors
    from latentknobs.adapter import KnobAdapter as KnobAdapter
    from latentknobs.adapter import attach as attach
    from latentknobs.heads.discriminator import Discriminator as Discriminator
    from latentknobs.heads.discriminator import load_discriminator as load_discriminator
    from latentknobs.knobs.context import Context as Context
    from latentknobs.knobs.context import Observation as Observation
    from latentknobs.knobs.knob import ContextKnob as ContextKnob
    from latentknobs.knobs.knob import DecodingKnob as DecodingKnob
    from latentknobs.knobs.knob import ScalingKnob as ScalingKnob
    from latentknobs.knobs.knob import Stage as Stage
    from latentknobs.knobs.knob import TruncationKnob as TruncationKnob
    from latentknobs.knobs.registry import register as register
    from latentknobs.knobs.space import KnobSpace as KnobSpace
    from latentknobs.learners.lpo import lpo_loss as lpo_loss
    from latentknobs.likelihood import apply_options as apply_options
    from latentknobs.likelihood import option_logps as option_logps
    from latentknobs.policies import Choice as Choice
    from latentknobs.policies import Policy as Policy
    from latentknobs.training.accounts import account as account
    from latentknobs.training.discriminate import discriminator as discriminator
    from latentknobs.training.evaluate import evaluate as evaluate
    from latentknobs.training.headroom import headroom as headroom
    from latentknobs.training.steering import steer as steer
    from latentknobs.training.strategies import find_strategies as find_strategies
    from latentknobs.training.train import train as train

_NAMES = {
    "adapter": "KnobAdapter attach",
    "heads.discriminator": "Discriminator load_discriminator",
    "knobs.context": "Context Observation",
    "knobs.knob": "ContextKnob DecodingKnob ScalingKnob Stage TruncationKnob",
    "knobs.registry": "register",
    "knobs.space": "KnobSpace",
    "learners.lpo": "lpo_loss",
    "likelihood": "apply_options option_logps",
    "policies": "Choice Policy",
    "training.accounts": "account",
    "training.discriminate": "discriminator",
    "training.evaluate": "evaluate",
    "training.headroom": "headroom",
    "training.steering": "steer",
    "training.strategies": "find_strategies",
    "training.train": "train",
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted([*_WHERE, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'latentknobs' has no attribute {name!r}")
    state = random.getstate()  # some libraries draw from it when they are imported
    try:
        return getattr(import_module(f"latentknobs.{_WHERE[name]}"), name)
    finally:
        random.setstate(state)


def __dir__() -> list[str]:
    return __all__
