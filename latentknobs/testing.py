"""What plugin authors run: one call, or one test class with a test per check.

>>> from latentknobs.testing import KnobConformance
>>> from latentknobs_truncation import TopP
>>> class TestTopP(KnobConformance):
...     knob = TopP()
"""

from collections.abc import Callable
from typing import ClassVar

from latentknobs.conformance import CHECKS, ConformanceError, Outcome, check_knob, report, run_checks
from latentknobs.conformance.runner import run_check
from latentknobs.knobs.knob import DecodingKnob

__all__ = ["CHECKS", "ConformanceError", "KnobConformance", "Outcome", "check_knob", "report", "run_checks"]


class KnobConformance:
    """Subclass it as `class TestMyKnob(KnobConformance)` and set `knob`: pytest then finds one test per check."""

    knob: ClassVar[DecodingKnob]


def _test(name: str) -> Callable[[KnobConformance], None]:
    def test(self: KnobConformance) -> None:
        outcome = run_check(name, self.knob)
        assert outcome.passed, f"The knob {self.knob.name!r} fails {name}: {outcome.message}."

    test.__doc__ = CHECKS[name].__doc__
    return test


for _name in CHECKS:
    setattr(KnobConformance, f"test_{_name}", _test(_name))
