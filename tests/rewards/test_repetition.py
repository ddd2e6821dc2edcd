"""The n-gram repetition reward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import ConfigError
from latentknobs.rewards import NgramRepetition
from latentknobs.rewards.repetition import repeated_share


def test_counts_repeated_trigrams_of_words():
    # 6 trigrams: "a b c", "b c a", "c a b", "a b c", "b c a", "c a b" -> 3 unique.
    assert NgramRepetition()(["p"], ["a b c a b c a b"]) == [-0.5]


def test_case_and_punctuation_do_not_hide_a_repetition():
    assert NgramRepetition(n=2)(["p"], ["He ran. he RAN!"]) == pytest.approx([-1 / 3])


def test_units_may_be_tokens():
    letters = NgramRepetition(n=1, split=list)
    assert letters(["p"], ["aab"]) == pytest.approx([-1 / 3])


def test_texts_shorter_than_n_repeat_nothing():
    assert NgramRepetition(n=3)(["p", "p"], ["", "two words"]) == [0.0, 0.0]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_share_is_a_share_and_zero_exactly_without_repeats(units, n):
    ngrams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    share = repeated_share(units, n)
    assert 0 <= share < 1
    assert (share == 0) == (len(set(ngrams)) == len(ngrams))


@given(st.lists(st.integers(0, 5), min_size=3, max_size=20))
def test_saying_everything_twice_repeats_at_least_as_much(units):
    assert repeated_share(units * 2, 3) >= repeated_share(units, 3)


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_impossible_n_is_refused(n):
    with pytest.raises(ConfigError, match=r"n must be a whole number"):
        NgramRepetition(n=n)
