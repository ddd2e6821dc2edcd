"""The suite passes every shipped reward, and each of its checks catches the fault it is there for, and no other."""

import shlex
import sys
from typing import ClassVar

import pytest
from broken_rewards import BROKEN, good

from latentknobs.errors import ConfigError, UnknownNameError
from latentknobs.rewards import Failed, reward_names
from latentknobs.testing import REWARDS, ConformanceError, RewardConformance, check_reward

COLUMNS = {"answer": [72, 42], "opener": "So", "task": ["stories", "math", "constrained"]}
PROGRAM = "import json, sys\nfor line in sys.stdin: print(len(json.loads(line)['completion']))"
SETTINGS = {
    "command": f"run={shlex.quote(sys.executable)} -c {shlex.quote(PROGRAM)}", "text_constraint": "max_words=5",
}  # fmt: skip


def failed(reward, **options):
    return [outcome.check for outcome in REWARDS.outcomes(reward, **options) if not outcome.passed]


@pytest.mark.parametrize("name", sorted({*reward_names()} - {"classifier"}))  # which test_classifier.py checks
def test_every_shipped_reward_passes_every_check(name):
    check_reward(f"{name}:{SETTINGS[name]}" if name in SETTINGS else name, columns=COLUMNS)


def answers_sometimes(completions, **columns):
    return [None if "cat" in text else Failed("no words") if not text.split() else 1 for text in completions]


async def awaited(completions, **columns):
    return (len(text) for text in completions)


@pytest.mark.parametrize("reward", [good, answers_sometimes, awaited, lambda completions: map(len, completions)])
def test_good_rewards_of_every_form_pass(reward):
    assert failed(reward) == []


def test_every_check_has_a_reward_that_it_must_catch():
    assert list(BROKEN) == list(REWARDS.checks)


@pytest.mark.parametrize("check", BROKEN)
def test_each_broken_reward_is_caught_by_the_check_meant_for_it_and_by_no_other(check):
    assert failed(BROKEN[check]) == [check]


WORDS = {
    "can_be_called": "requires 'solution', and is called with prompts, completions, completion_ids",
    "gives_one_answer_for_each": "a set: return a list of 5 numbers",
    "answers_with_numbers": "5 of 5 values cannot be used. It returned '18/10', which is not a finite number",
    "accepts_a_single_completion": "of 0 dimensions: return a list of 1 numbers",
    "survives_odd_texts": "for the completion '': It raises ZeroDivisionError: division by zero",
    "does_not_change_inputs": "it changes completions; work on a copy",
    "version_can_be_used": "its version ('1', 2) is a tuple, which is ignored; use a text or a number",
    "is_repeatable": "fix its seed, or leave out `version`",
}


@pytest.mark.parametrize("check", WORDS)
def test_a_verdict_says_what_happened_and_what_to_do(check):
    with pytest.raises(ConformanceError, match=r"The reward '\w+' fails 1 of 11 checks: ") as caught:
        check_reward(BROKEN[check])
    assert f"{check}: " in str(caught.value) and WORDS[check] in str(caught.value)


def test_what_cannot_be_tried_is_neither_passed_nor_failed():
    text, is_good = REWARDS.report("exact_match", columns={"other": 1})
    assert not is_good and "FAIL  can_be_called: " in text and "requires 'answer', and is called with" in text
    assert "-     keeps_the_order" in text and text.splitlines()[-1] == "1 of 11 checks passed."


@pytest.mark.parametrize("columns", ["[1]", "{", '{"answer": []}', '{"completions": 1}', "3"])
def test_columns_that_are_not_columns(columns):
    with pytest.raises(ConfigError, match="are not columns: write a JSON object such as"):
        REWARDS.report("exact_match", columns=columns)


def test_an_unknown_name_is_the_usual_error():
    with pytest.raises(UnknownNameError, match='Did you mean "repetition"'):
        check_reward("repetitoin")


class TestExactMatch(RewardConformance):
    """The way a plugin author uses the suite."""

    reward = "exact_match"
    columns: ClassVar = {"answer": [72, 42]}


class TestPlainFunction(RewardConformance):
    """A function stays one, although it is an attribute of a class."""

    reward = good


def test_the_test_class_fails_in_the_test_named_after_the_check():
    class Subject(RewardConformance):
        reward = BROKEN["keeps_the_order"]

    Subject().test_can_be_called()
    with pytest.raises(AssertionError, match=r"The reward .best_first. fails keeps_the_order: in reverse order"):
        Subject().test_keeps_the_order()
