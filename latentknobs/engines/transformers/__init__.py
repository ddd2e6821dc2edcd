"""Decoding with a policy inside transformers' own `generate`."""

from latentknobs.engines.transformers.attach import Attached
from latentknobs.engines.transformers.record import Record
from latentknobs.engines.transformers.second import read_contexts

__all__ = ["Attached", "Record", "read_contexts"]
