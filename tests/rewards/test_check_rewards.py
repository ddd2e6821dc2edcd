"""What a reward may return."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import BrokenRewardError, RewardError
from latentknobs.rewards import Failed
from latentknobs.rewards.check import Answer, check_rewards


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=10))
def test_finite_numbers_pass_unchanged(values):
    assert check_rewards(values, len(values), "mine") == [Answer(value) for value in values]


def test_tensors_arrays_generators_and_whole_numbers_become_floats():
    for values in (torch.tensor([1.0, 2.0]), np.array([1, 2]), [1, True + 1], (1.0, np.float32(2)), (n for n in (1, 2))):
        checked = check_rewards(values, 2, "mine")
        assert checked == [Answer(1.0), Answer(2.0)]
        assert all(type(answer.value) is float for answer in checked)


def test_wrong_length_names_both_numbers_and_is_no_matter_of_single_items():
    with pytest.raises(BrokenRewardError, match=r"'mine' returned 1 values for 2 completions"):
        check_rewards([1.0], 2, "mine")
    assert issubclass(BrokenRewardError, RewardError)


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), "1.0", 1j, [1.0], torch.zeros(2), 10**400, "x" * 1000, np.float64("nan")]
)
def test_a_bad_value_has_an_error_that_shows_it_and_spoils_no_other(bad):
    good, failed = check_rewards([0.5, bad], 2, "mine")
    assert good == Answer(0.5)
    assert failed.value is None
    assert repr(bad if not isinstance(bad, np.generic) else bad.item())[:40].split("\n")[0] in failed.error
    assert "no finite number" in failed.error
    assert len(failed.error) < 200


def test_none_is_no_failure():
    assert check_rewards([None, 1.0], 2, "mine") == [Answer(None), Answer(1.0)]


def test_a_failure_says_why_and_is_a_nan_to_whoever_does_not_know_it():
    failed = Failed("no idea")
    assert check_rewards([failed], 1, "mine") == [Answer(None, "no idea")]
    assert math.isnan(failed) and torch.tensor([failed, 1.0]).isnan().tolist() == [True, False]


@pytest.mark.parametrize("bad", [None, 1.0, "text", {"a": 1}, torch.tensor(1.0)])
def test_no_list_at_all(bad):
    with pytest.raises(BrokenRewardError, match="return a list of 3 numbers"):
        check_rewards(bad, 3, "mine")
