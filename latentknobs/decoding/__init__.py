"""Decoding with a policy inside transformers' own `generate`."""

from latentknobs.decoding.attach import Attached
from latentknobs.decoding.record import Record
from latentknobs.decoding.second import read_contexts

__all__ = ["Attached", "Record", "read_contexts"]
