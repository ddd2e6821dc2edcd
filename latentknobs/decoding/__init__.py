"""Decoding with a policy inside transformers' own `generate`."""

from latentknobs.decoding.attach import Attached
from latentknobs.decoding.record import Record

__all__ = ["Attached", "Record"]
