"""What a reward may return."""

import itertools
import math
from array import array
from collections import Counter, deque
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import BrokenRewardError, RewardError
from latentknobs.rewards import Failed
from latentknobs.rewards.returned import Answer, check_answer, listed


def check_rewards(values, n, name="mine"):
    return [check_answer(item) for item in listed(values, n, name)]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=10))
def test_finite_numbers_pass_unchanged(values):
    assert check_rewards(values, len(values)) == [Answer(value) for value in values]


def test_tensors_arrays_generators_and_whole_numbers_become_floats():
    for values in (
        torch.tensor([1.0, 2.0]), torch.tensor([1, 2], dtype=torch.bfloat16), torch.tensor([1.0, 2.0], requires_grad=True),
        np.array([1, 2]), np.array([1, 2], dtype=object), array("d", [1, 2]), (1.0, np.float32(2)), [True, 2],
        [Decimal(1), Fraction(2)], [torch.tensor(1, dtype=torch.uint8), np.float16(2)],
        (n for n in (1, 2)), map(int, "12"), reversed([2, 1]), range(1, 3), deque([1, 2]),
    ):  # fmt: skip
        checked = check_rewards(values, 2)
        assert checked == [Answer(1.0), Answer(2.0)]
        assert all(type(answer.value) is float for answer in checked)


def test_truth_values_of_every_kind_are_numbers():
    for values in ([True, False], np.array([True, False]), torch.tensor([True, False]), [np.True_, torch.tensor(False)]):
        assert check_rewards(values, 2) == [Answer(1.0), Answer(0.0)]


def test_a_masked_value_does_not_apply():
    assert check_rewards(np.ma.masked_array([1.0, 2.0], [False, True]), 2) == [Answer(1.0), Answer(None)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_device():
    device = torch.device("cuda")
    for values in (torch.tensor([1.0, 2.0], device=device), [torch.tensor(1.0, device=device), 2]):
        assert check_rewards(values, 2) == [Answer(1.0), Answer(2.0)]


BY_NUMBER = {1: 2.0, 2: 3.0, 3: 4.0}
UNORDERED = [{1.0, 2.0, 3.0}, frozenset({1.0, 2.0, 3.0}), BY_NUMBER, BY_NUMBER.values(), BY_NUMBER.keys(), BY_NUMBER.items(),
             Counter("abc"), MappingProxyType(BY_NUMBER)]  # fmt: skip


@pytest.mark.parametrize("values", UNORDERED, ids=lambda values: type(values).__name__)
def test_what_has_no_order_is_refused_whatever_its_length(values):
    with pytest.raises(BrokenRewardError, match="return a list of 3 numbers, one for each completion, in the same order"):
        check_rewards(values, 3)


SHAPES = [np.zeros((3, 1)), torch.zeros(3, 1), torch.zeros(1, 3), np.float64(1.0), np.array(1.0), torch.tensor(1.0)]


@pytest.mark.parametrize("values", SHAPES, ids=repr)
def test_arrays_of_other_shapes_are_refused(values):
    with pytest.raises(BrokenRewardError, match=f"of {values.ndim} dimensions: return a list of 3 numbers"):
        check_rewards(values, 3)


@pytest.mark.parametrize(("values", "count"), [
    (iter(()), "0"), ((n for n in ()), "0"), (map(float, [1]), "1"), (itertools.repeat(1.0), "more than 3"),
    ([1.0] * 5, "5"), ([], "0"),
])  # fmt: skip
def test_iterators_are_read_once_and_never_for_ever(values, count):
    with pytest.raises(BrokenRewardError, match=rf"returned {count} values for 3 completions"):
        check_rewards(values, 3)


def test_wrong_length_names_both_numbers_and_is_no_matter_of_single_items():
    with pytest.raises(BrokenRewardError, match=r"'mine' returned 1 values for 2 completions"):
        check_rewards([1.0], 2)
    assert issubclass(BrokenRewardError, RewardError)


BAD = [float("nan"), float("inf"), -float("inf"), np.float64("nan"), Decimal("nan"), Decimal("sNaN"), Decimal("inf"), 10**400, 1j,
       "1.0", "x" * 1000, [1.0], [[1.0]], (1.0, 2.0), {"score": 1.0}, np.ones(1), torch.zeros(2)]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:20])
def test_a_bad_value_has_an_error_that_shows_it_and_spoils_no_other(bad):
    good, failed = check_rewards([0.5, bad], 2)
    assert good == Answer(0.5)
    assert failed.value is None
    assert repr(bad if not isinstance(bad, np.generic) else bad.item())[:40].split("\n")[0] in failed.error
    assert "not a finite number" in failed.error
    assert len(failed.error) < 200


def test_none_is_no_failure():
    assert check_rewards([None, 1.0], 2) == [Answer(None), Answer(1.0)]


def test_a_failure_says_why_and_is_a_nan_to_whoever_does_not_know_it():
    failed = Failed("no idea")
    assert check_rewards([failed], 1) == [Answer(None, "no idea")]
    assert math.isnan(failed) and torch.tensor([failed, 1.0]).isnan().tolist() == [True, False]


@pytest.mark.parametrize("bad", [None, 1.0, "abc", b"abc", bytearray(b"abc"), object(), max])
def test_no_list_at_all(bad):
    with pytest.raises(BrokenRewardError, match="return a list of 3 numbers"):
        check_rewards(bad, 3)
