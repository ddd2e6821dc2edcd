"""The suite passes every shipped learner, and each of its checks catches the fault it is there for."""

import pytest
from broken_learners import BROKEN, Good
from click.testing import CliRunner

from latentknobs.cli import cli
from latentknobs.errors import UnknownNameError
from latentknobs.learners.lpo import OBJECTIVES
from latentknobs.learners.lpo.learner import LPO
from latentknobs.learners.reinforce.learner import Reinforce
from latentknobs.testing import LEARNERS, ConformanceError, LearnerConformance, check_learner


class TestLPO(LearnerConformance):
    learner = LPO


class TestReinforce(LearnerConformance):
    learner = Reinforce


@pytest.mark.parametrize(
    "more",
    [{"estimator": "score", "baseline": "group"}, {"baseline": "none", "normalise": False}, {"max_prob": 0.5, "updates": 2}],
)
def test_reinforce_passes_with_every_estimator_and_baseline(more):
    check_learner("reinforce", settings=Reinforce.Settings(**more))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("more", [{}, {"kl": 0.1, "entropy_bonus": 0.1, "length_norm": "mean", "pairs_per_prompt": 2}])
def test_lpo_passes_with_every_objective(objective, more):
    check_learner("lpo", settings=LPO.Settings(objective=objective, **more))


def test_every_check_has_a_learner_that_it_must_catch_and_a_good_one_passes():
    assert list(BROKEN) == list(LEARNERS.checks)
    check_learner(Good)


@pytest.mark.parametrize("check", BROKEN)
def test_each_broken_learner_is_caught_by_the_check_meant_for_it_and_by_no_other(check):
    assert [outcome.check for outcome in LEARNERS.outcomes(BROKEN[check]) if not outcome.passed] == [check]


def test_a_verdict_names_the_learner_the_fault_and_the_cure():
    with pytest.raises(
        ConformanceError, match=r"The learner 'good' fails 1 of 14 checks: examples_ignore_failed.*leave out rewards"
    ):
        check_learner(BROKEN["examples_ignore_failed_scores"])
    with pytest.raises(UnknownNameError, match=r"There is no learner 'lop'\. Did you mean \"lpo\""):
        check_learner("lop")


def test_the_command_line_lists_and_checks_learners():
    listed = CliRunner().invoke(cli, ["learners", "list"])
    assert listed.exit_code == 0 and "lpo" in listed.output and "beta=0.1" in listed.output.replace("\n", "")
    checked = CliRunner().invoke(cli, ["learners", "check", "lpo"])
    assert checked.exit_code == 0 and "14 of 14 checks passed" in checked.output, checked.output
