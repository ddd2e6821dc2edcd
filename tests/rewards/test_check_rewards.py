"""What a reward may return."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import RewardError
from latentknobs.rewards import check_rewards


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=10))
def test_finite_numbers_pass_unchanged(values):
    assert check_rewards(values, len(values), "mine") == values


def test_tensors_arrays_and_whole_numbers_become_floats():
    for values in (torch.tensor([1.0, 2.0]), np.array([1, 2]), [1, True + 1], (1.0, np.float32(2))):
        checked = check_rewards(values, 2, "mine")
        assert checked == [1.0, 2.0]
        assert all(type(value) is float for value in checked)


def test_wrong_length_names_both_numbers():
    with pytest.raises(RewardError, match=r"'mine' returned 1 values for 2 completions"):
        check_rewards([1.0], 2, "mine")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None, "1.0", 1j, [1.0], torch.zeros(2)])
def test_bad_value_names_reward_index_prompt_and_remedy(bad):
    with pytest.raises(RewardError) as caught:
        check_rewards([0.0, bad], 2, "mine", prompts=["one", "two " * 100])
    message = str(caught.value)
    assert "'mine'" in message
    assert "completion 1" in message
    assert "two two" in message
    assert "finite number" in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("bad", [None, 1.0, "text", {"a": 1}])
def test_no_list_at_all(bad):
    with pytest.raises(RewardError, match="return a list of 3 numbers"):
        check_rewards(bad, 3, "mine")
