"""What plugin authors run: one call, or one test class with a test for each check.

>>> from latentknobs.testing import KnobConformance
>>> from latentknobs_truncation import TopP
>>> class TestTopP(KnobConformance):
...     knob = TopP()
"""

from typing import ClassVar

from latentknobs.conformance.knobs import SUITE as KNOBS
from latentknobs.conformance.suite import Conformance, ConformanceError, Outcome, Suite
from latentknobs.knobs.knob import DecodingKnob

__all__ = ["KNOBS", "Conformance", "ConformanceError", "KnobConformance", "Outcome", "Suite", "check_knob", "report"]

check_knob, report = KNOBS.check, KNOBS.report


class KnobConformance(Conformance):
    """Subclass it as `class TestMyKnob(KnobConformance)` and set `knob`: pytest then finds one test for each check."""

    suite = KNOBS
    knob: ClassVar[DecodingKnob]
