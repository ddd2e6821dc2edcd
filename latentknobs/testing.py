"""What plugin authors run: one call, or one test class with a test for each check.

>>> from latentknobs.testing import KnobConformance
>>> from latentknobs_truncation import TopP
>>> class TestTopP(KnobConformance):
...     knob = TopP()
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from latentknobs.conformance.knobs import SUITE as KNOBS
from latentknobs.conformance.rewards import SUITE as REWARDS
from latentknobs.conformance.suite import Conformance, ConformanceError, Outcome, Suite
from latentknobs.knobs.knob import DecodingKnob

__all__ = [
    "KNOBS", "REWARDS", "Conformance", "ConformanceError", "KnobConformance", "Outcome", "RewardConformance", "Suite",
    "check_knob", "check_reward", "report",
]  # fmt: skip

check_knob, report = KNOBS.check, KNOBS.report
check_reward = REWARDS.check


class KnobConformance(Conformance):
    """Subclass it as `class TestMyKnob(KnobConformance)` and set `knob`: pytest then finds one test for each check."""

    suite = KNOBS
    knob: ClassVar[DecodingKnob]


class RewardConformance(Conformance):
    """Subclass it as `class TestMyReward(RewardConformance)`, set `reward`, and `columns` where it needs any in the prompts."""

    suite = REWARDS
    reward: ClassVar[Any]
    columns: ClassVar[Mapping[str, Any]] = {}

    def subject(self) -> Any:
        """The reward on test rows with these columns."""
        return REWARDS.find(type(self).reward, self.columns)
