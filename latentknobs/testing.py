"""What plugin authors run: one call, or one test class with a test for each check.

>>> from latentknobs.testing import KnobConformance
>>> from latentknobs_truncation import TopP
>>> class TestTopP(KnobConformance):
...     knob = TopP()
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from latentknobs.conformance.engines import SUITE as ENGINES
from latentknobs.conformance.knobs import SUITE as KNOBS
from latentknobs.conformance.learners import SUITE as LEARNERS
from latentknobs.conformance.policies import SUITE as POLICIES
from latentknobs.conformance.rewards import SUITE as REWARDS
from latentknobs.conformance.suite import Conformance, ConformanceError, Outcome, Suite
from latentknobs.engines.base import Engine
from latentknobs.knobs.knob import DecodingKnob
from latentknobs.learners.base import Learner
from latentknobs.policies import Policy

__all__ = [
    "ENGINES", "KNOBS", "LEARNERS", "POLICIES", "REWARDS", "Conformance", "ConformanceError", "EngineConformance",
    "KnobConformance", "LearnerConformance", "Outcome", "PolicyConformance", "RewardConformance", "Suite", "check_engine",
    "check_knob", "check_learner", "check_policy", "check_reward",
    "report",
]  # fmt: skip

check_knob, report = KNOBS.check, KNOBS.report
check_engine, check_learner = ENGINES.check, LEARNERS.check
check_policy, check_reward = POLICIES.check, REWARDS.check


class KnobConformance(Conformance):
    """Subclass it as `class TestMyKnob(KnobConformance)` and set `knob`: pytest then finds one test for each check."""

    suite = KNOBS
    knob: ClassVar[DecodingKnob]


class PolicyConformance(Conformance):
    """Subclass it as `class TestMyPolicy(PolicyConformance)` and set `policy`, and the sizes of the model that it is for."""

    suite = POLICIES
    policy: ClassVar[Policy]
    hidden_size: ClassVar[int] = 16
    vocabulary: ClassVar[int] = 50

    def subject(self) -> Any:
        """The policy on observations of these sizes."""
        return POLICIES.find(self.policy, self.hidden_size, self.vocabulary)


class RewardConformance(Conformance):
    """Subclass it as `class TestMyReward(RewardConformance)`, set `reward`, and `columns` where it needs any in the prompts."""

    suite = REWARDS
    reward: ClassVar[Any]
    columns: ClassVar[Mapping[str, Any]] = {}

    def subject(self) -> Any:
        """The reward on test rows with these columns."""
        return REWARDS.find(type(self).reward, self.columns)


class LearnerConformance(Conformance):
    """Subclass it as `class TestMyLearner(LearnerConformance)`, set `learner`, and `settings` where its defaults will not do."""

    suite = LEARNERS
    learner: ClassVar[type[Learner]]
    settings: ClassVar[Any] = None

    def subject(self) -> Any:
        """The learner on a tiny bandit."""
        return LEARNERS.find(self.learner, self.settings)


class EngineConformance(Conformance):
    """Subclass it as `class TestMyEngine(EngineConformance)` and set `engine`, on a model of at least ten tokens."""

    suite = ENGINES
    engine: ClassVar[Engine]
