"""A digest is of content: equal exactly for what holds the same, whatever its `repr` shows."""

import copy
import datetime
import decimal
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.content import digest

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
nested = st.recursive(plain, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner))


def exact(value: Any) -> Any:
    """A value with its types, which == does not compare: True is not 1, and 0.0 is not -0.0."""
    if isinstance(value, dict):
        return dict, [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [exact(item) for item in value]
    return type(value), repr(value)


@given(nested, nested)
def test_equal_digests_are_of_equal_values(one, two):
    assert digest(one) == digest(copy.deepcopy(one))
    assert (digest(one) == digest(two)) == (exact(one) == exact(two))
    assert digest(one, two) != digest([one, two])


@dataclass
class Record:
    array: Any


class Thing:
    """Its `repr` is an address, and its content what it holds."""

    def __init__(self, held: Any) -> None:
        self.held = held


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


ARRAYS = [np.arange(10_000.0), torch.arange(10_000.0), torch.arange(10_000).bfloat16(), np.arange(10_000.0).astype(object)]


def changed(array):
    other = array.copy() if isinstance(array, np.ndarray) else array.clone()
    other[5_000] = -1
    return other


WRAPS = [lambda a: a, lambda a: [a], lambda a: {"x": a}, Thing, Slotted, Record, lambda a: Thing([Thing(a)])]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: str(a.dtype))
def test_the_middle_of_a_long_array_counts_wherever_it_is(wrap, array):
    assert repr(array) == repr(changed(array))
    assert digest(wrap(array)) == digest(wrap(copy.deepcopy(array))) != digest(wrap(changed(array)))


def test_values_of_different_kinds_differ():
    values = [
        1, True, 1.0, "1", b"1", None, [1], (1,), {1}, frozenset({1}), {"a": 1}, {"a": [1]}, [[1], 2], [[1, 2]], np.float32(1),
        np.float64(1), np.array([1.0]), np.array([[1.0]]), torch.tensor([1.0]), decimal.Decimal("1"), decimal.Decimal("1.0"),
        datetime.date(2020, 1, 1), datetime.date(2020, 1, 2), range(3), range(4), Thing, len, torch.float32, torch.float16,
        "\ud800", np.array([1, "a"], dtype=object), np.array([2, "a"], dtype=object), [1].append, np.dtype("<f4"),
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)


def test_sets_have_no_order_and_mappings_have_one():
    words = [str(n) for n in range(100)]
    assert digest(set(words)) == digest(set(reversed(words)))
    assert digest({"a": 1, "b": 2}) != digest({"b": 2, "a": 1})


def test_a_thing_that_contains_itself_has_a_digest():
    one: list[Any] = [1]
    one.append(one)
    two: list[Any] = [2]
    two.append(two)
    assert digest(one) != digest(two)


def test_what_cannot_be_taken_apart_is_never_the_same():
    lock = threading.Lock()
    assert digest(lock) != digest(lock)
