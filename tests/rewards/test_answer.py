"""Exact match of a final number."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import BrokenRewardError, RewardError
from latentknobs.rewards import ExactMatch, score_all
from latentknobs.rewards.answer import final_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12+7=19. 19-5=14. So 14.", 14),
        ("19-5", 5),
        ("x = -5", -5),
        ("It costs $1,234.50.", Fraction("1234.5")),
        ("half, so 3/4", Fraction(3, 4)),
        ("12, 13", 13),
        ("about .5", Fraction(1, 2)),
        ("no zero division: 3/0", 0),
        ("The answer is seven.", None),
        ("", None),
    ],
)
def test_last_number(text, expected):
    assert final_number(text) == expected


def test_only_what_follows_the_last_marker_counts():
    assert final_number("#### 3 and 4 #### 5", "####") == 5
    assert final_number("So 14. Then 99 birds", "So") == 99
    assert final_number("99 birds. So none", "So") is None


@given(st.integers(-(10**6), 10**6))
def test_any_whole_number_is_read_back_with_and_without_commas(number):
    assert final_number(f"So {number}.") == number
    assert final_number(f"So {number:,}.") == number


@given(st.fractions(max_denominator=50))
def test_fractions_compare_by_value(fraction):
    doubled = f"{2 * fraction.numerator}/{2 * fraction.denominator}"
    assert ExactMatch()(["p"], [f"it is {doubled}"], answer=[str(fraction)]) == [1.0]


def test_right_and_wrong_completions():
    completions = ["#### 72", "72 of 80", "nothing"]
    assert ExactMatch()(["p"] * 3, completions, answer=["9*8=72 #### 72", 72, 72.0]) == [1.0, 0.0, 0.0]


def test_a_conversation_is_judged_by_its_reply():
    asked = [{"role": "user", "content": "12+2? Not 99."}]
    replies = [[{"role": "assistant", "content": "So 14."}], [{"role": "assistant", "content": None}]]
    assert ExactMatch()([asked, asked], replies, answer=[14, 14]) == [1.0, 0.0]


def test_missing_column_says_what_to_add():
    with pytest.raises(BrokenRewardError, match=r"'exact_match' requires 'answer'.*Add such a column to the prompts"):
        score_all("exact_match", ["p"], ["1"], {})


def test_answer_without_number_names_prompt_and_text():
    with pytest.raises(RewardError, match=r"answer 'seven' of the prompt 'two'"):
        ExactMatch()(["one", "two"], ["1", "7"], answer=["1", "seven"])


def test_an_answer_without_number_costs_its_own_score_only():
    scores = score_all("exact_match", ["one", "two"], ["1", "7"], {"answer": ["1", "seven"]})
    assert [s.value for s in scores] == [1.0, None]
    assert "no number in the answer 'seven'" in scores[1].error
