"""The suite passes every policy that this package offers, and each of its checks catches the fault it is there for."""

from typing import ClassVar

import pytest
import torch
from broken_policies import BROKEN, Counting, Drawing, Good

from latentknobs import KnobSpace, Policy
from latentknobs.errors import UnknownNameError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.policies import HeadPolicy
from latentknobs.testing import POLICIES, ConformanceError, PolicyConformance, check_policy

NAMED = [
    "greedy", "constant:temperature=0.7,top_p=0.9", "uniform:temperature=0,0.5,1,level=every:3", "edt:base=1.4,theta=1",
    "balanced:temperature=0.5,1,top_p=0.5,1", "dynatemp:low=0.2,high=1.5,exponent=0.6", "mirostat:tau=2,eta=0.3",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_every_policy_that_has_a_name_passes_every_check(name: str) -> None:
    check_policy(name)


@pytest.mark.parametrize("policy", [Good(), Counting(), Drawing()])
def test_the_good_ones_beside_the_broken_ones_pass(policy: Policy) -> None:
    check_policy(policy)


# What else must fail with it: nothing can be said of rows where a batch is not repeated, and one row alone is a batch too.
ALSO = {
    "chooses_a_value_for_each_row_and_knob": {"values_lie_in_their_ranges"},
    "reads_only_what_it_names": set(POLICIES.checks) - {"has_a_space_and_a_segmenter", "has_an_identity"},
    "remembers_only_in_its_state": {
        "rows_do_not_depend_on_each_other", "rows_can_leave_and_be_reordered", "draws_only_if_it_says_so",
    },
    "rows_do_not_depend_on_each_other": {"rows_can_leave_and_be_reordered"},
}  # fmt: skip


def test_every_check_has_a_policy_that_it_must_catch() -> None:
    assert list(BROKEN) == list(POLICIES.checks)


@pytest.mark.parametrize("check", BROKEN)
def test_each_broken_policy_is_caught_by_the_check_meant_for_it(check: str) -> None:
    failed = {outcome.check for outcome in POLICIES.outcomes(BROKEN[check]()) if not outcome.passed}
    assert check in failed and failed - {check} <= ALSO.get(check, set())


def test_a_report_names_the_policy_and_its_space_and_a_failure_says_what_it_did() -> None:
    text, is_good = POLICIES.report("edt:base=1,theta=1")
    assert is_good and text.startswith("EDT of KnobSpace(temperature[1]") and text.endswith("13 of 13 checks passed.")
    with pytest.raises(ConformanceError, match=r"policy 'Negative' fails 1 of 13 .*it chose temperature = -0\.\d+, outside 0 to"):
        check_policy(BROKEN["values_lie_in_their_ranges"]())
    with pytest.raises(UnknownNameError, match='Did you mean "mirostat"'):
        check_policy("mirostatt:tau=1")


class TestHeadPolicy(PolicyConformance):
    torch.manual_seed(0)
    head: ClassVar[OptionHead] = OptionHead(KnobSpace.of("temperature", "top_p"), 25, hidden=8)
    torch.nn.init.normal_(head.mlp[-1].weight, std=2.0)  # type: ignore[arg-type]
    policy = HeadPolicy(head, KnobSpace.of("temperature", "top_p"), Every(2), ("hidden", "entropy"), "sample")
    hidden_size = 24
