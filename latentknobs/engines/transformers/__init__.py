"""Decoding with a policy inside transformers' own `generate`."""

from latentknobs.engines.record import Record
from latentknobs.engines.transformers.attach import Attached
from latentknobs.engines.transformers.engine import TransformersEngine

__all__ = ["Attached", "Record", "TransformersEngine"]
