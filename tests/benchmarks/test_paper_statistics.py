"""Tests and curves against enumeration and closed forms."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.statistics import hypervolume, hypervolume_gain, vote_accuracy


def by_enumeration(answers: list[str | None], right: str, votes: int) -> float:
    wins = []
    for subset in itertools.combinations(answers, votes):
        counts = Counter(answer for answer in subset if answer is not None)
        leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
        wins.append((right in leaders) / max(1, len(leaders)))
    return float(np.mean(wins))


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=9), st.data())
def test_votes_agree_with_every_subset(answers: list[str | None], data: st.DataObject) -> None:
    votes = data.draw(st.integers(1, len(answers)))
    assert vote_accuracy(answers, "a", votes) == pytest.approx(by_enumeration(answers, "a", votes))


def test_one_vote_is_the_accuracy_of_a_single_sample() -> None:
    assert vote_accuracy(["a"] * 7 + ["b"] * 25, "a", 1) == pytest.approx(7 / 32)


def test_more_votes_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"There are 3 samples, so 4 votes cannot be drawn"):
        vote_accuracy(["a"] * 3, "a", 4)


def test_hypervolume_of_a_staircase() -> None:
    assert hypervolume(np.array([[1.0, 3.0], [2.0, 2.0], [0.5, 1.0], [3.0, 1.0]]), np.zeros(2)) == pytest.approx(3 + 2 + 1)


def test_a_front_that_lies_above_gains_and_an_equal_one_does_not() -> None:
    low = np.random.default_rng(0).normal(0, 0.1, (3, 50, 2)) + np.array([[[0, 2]], [[1, 1]], [[2, 0]]])
    gain, bottom, _ = hypervolume_gain(low + 0.5, low, resamples=200)
    assert gain > 0 and bottom > 0
    assert hypervolume_gain(low, low, resamples=50) == (0.0, 0.0, 0.0)
