"""The testbed's prompts: deterministic, unique, never in both splits, and arithmetically right."""

import random
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentknobs.errors import ConfigError
from latentknobs.rewards.answer import final_number
from latentknobs.testbed import prompts, words
from latentknobs.testbed.math_problems import MAX_NUMBER, math_problem
from latentknobs.testbed.openings import story_opening
from latentknobs.testbed.tasks import EVAL_SHARE, SINGLE_TASKS, TASKS, split_of, with_opener


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_same_rows_and_another_seed_others(task):
    assert prompts(task, "train", 30, seed=3) == prompts(task, "train", 30, seed=3)
    assert prompts(task, "train", 30, seed=3) != prompts(task, "train", 30, seed=4)


@pytest.mark.parametrize("task", SINGLE_TASKS)
def test_prompts_are_unique_and_splits_never_meet(task):
    train = {row["prompt"] for seed in range(3) for row in prompts(task, "train", 400, seed)}
    held_out = {row["prompt"] for seed in range(3) for row in prompts(task, "eval", 400, seed)}
    assert not train & held_out
    templates = [{row["group"] for row in prompts(task, split, 400)} for split in ("train", "eval")]
    assert not templates[0] & templates[1] and min(map(len, templates)) >= 15
    assert len(prompts(task, "eval", 400)) == len({row["prompt"] for row in prompts(task, "eval", 400)})


def test_the_first_rows_do_not_depend_on_how_many_follow():
    assert prompts("stories", "eval", 50)[:10] == prompts("stories", "eval", 10)


def test_the_split_is_the_texts_own_on_every_machine():
    # Fixed texts: Python's own hash() would differ from process to process.
    assert "".join(text for text in "abcdefgh" if split_of(text) == "eval") == "cdf"
    share = sum(split_of(str(i)) == "eval" for i in range(4000)) / 4000
    assert share == pytest.approx(EVAL_SHARE, abs=0.02)


def test_mixture_holds_each_task_equally_and_shuffled():
    rows = prompts("mixture", "train", 90)
    tasks = [row["task"] for row in rows]
    assert {task: tasks.count(task) for task in SINGLE_TASKS} == dict.fromkeys(SINGLE_TASKS, 30)
    assert any(a == b for a, b in pairwise(tasks))


def test_columns_fit_the_task():
    for row in prompts("mixture", "eval", 60):
        assert set(row) == {"prompt", "task", "answer", "opener", "group"}
        assert (row["answer"] is not None) == (row["task"] == "math")
        assert (row["opener"] is not None) == (row["task"] == "constrained")


def test_constrained_prompts_keep_their_own_rule_and_end_a_sentence():
    for row in prompts("constrained", "train", 100):
        rule, story = row["prompt"].removeprefix("Rule: ").split("\nStory: ")
        assert rule == row["opener"]
        assert story.endswith(".")
        assert all(sentence.startswith(f"{rule}, ") for sentence in story.split(". "))


@given(st.integers(0, 2**32))
@settings(max_examples=200)
def test_problems_stay_in_range_and_the_work_ends_in_the_answer(seed):
    problem = math_problem(random.Random(seed))
    numbers = [int(number) for number in re.findall(r"\d+", problem.work)]
    assert all(0 <= number <= MAX_NUMBER for number in numbers)
    assert final_number(problem.work, "So") == problem.answer
    for left, right in re.findall(r"(\d+[+-]\d+)=(\d+)\.", problem.work):
        a, sign, b = re.split(r"([+-])", left)
        assert int(right) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    assert re.findall(r"\d+", problem.text) == [str(problem.start), *(str(amount) for _, amount in problem.steps)]


def test_openings_use_known_words_only():
    known = {word for name, entries in vars(words).items() if name.isupper() for word in entries}
    rng = random.Random(0)
    capitalised = {word for _ in range(300) for word in re.findall(r"[A-Z][a-z]+", story_opening(rng).text) if word not in known}
    assert capitalised <= {"Once", "One", "There", "He", "She", "The"}


def test_with_opener_keeps_the_capital_of_names():
    assert with_opener("He ran.", "So") == "So, he ran."
    assert with_opener("Tom ran.", "So") == "So, Tom ran."
    assert with_opener("I'm here.", "And") == "And, I'm here."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("maths", "train", 1), r"'maths'.*\"math\".*mixture"),
        (("math", "test", 1), r"'test'.*eval, train"),
        (("math", "train", -1), r"-1 prompts"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        prompts(*arguments)
