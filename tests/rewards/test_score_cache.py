"""Scores that are kept: under which key, on which disk, and when they are asked again."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import RunError
from latentknobs.rewards import Failed, ScoreCache, resolve_rewards, score_all
from latentknobs.rewards.cache import score_key


class Judge:
    """Worth the length of a text, and remembers what it was asked."""

    version: str | None = "1"

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, completions, **columns):
        self.asked += completions
        return [self.judge(text) for text in completions]

    def judge(self, text):
        return len(text) / 3


def ask(judge, texts, cache, columns=None):
    return [s.value for s in score_all(judge, ["p"] * len(texts), texts, columns or {}, cache=cache, batch=2, whole=False)]


def test_a_known_score_is_not_asked_again_not_even_by_another_process(tmp_path):
    first, again = Judge(), Judge()
    values = ask(first, ["a", "bb", "ccc"], ScoreCache(tmp_path / "new" / "c.jsonl"))
    assert ask(again, ["ccc", "new!", "a", "bb"], ScoreCache(tmp_path / "new" / "c.jsonl")) == [1.0, 4 / 3, *values[:2]]
    assert again.asked == ["new!"]


def test_equal_items_are_asked_once(tmp_path):
    judge = Judge()
    assert ask(judge, ["a", "a", "a", "bb"], ScoreCache(tmp_path / "c")) == [1 / 3, 1 / 3, 1 / 3, 2 / 3]
    assert judge.asked == ["a", "bb"]


def test_whatever_a_score_depends_on_is_part_of_its_key():
    row = {"prompts": "p", "completions": "c", "completion_ids": [7, 8], "answer": 1}
    chat = {"prompts": [{"role": "user", "content": "p"}]}
    changes = [{"prompts": "q"}, chat, {"completions": "d"}, {"completion_ids": [78]}, {"completion_ids": None}, {"answer": 2},
               {"answer": "1"}, {"answer": None}, {"task": 1}]  # fmt: skip
    keys = {score_key("i", row), score_key("j", row), *(score_key("i", row | change) for change in changes)}
    assert len(keys) == len(changes) + 2 and all(len(key) == 64 for key in keys)
    assert score_key("i", row | {"task": None}) == score_key("i", row)


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, (1, 2), math.nan, np.zeros(2), {1, 2}, [{"deep": (1,)}]], ids=lambda value: type(value).__name__
)
def test_columns_that_json_cannot_hold_exactly_have_no_key_and_are_scored_again(tmp_path, value):
    assert score_key("i", {"what": value}) is None
    judge, cache = Judge(), ScoreCache(tmp_path / "c")
    columns = {"what": [value, value]}
    assert ask(judge, ["a", "a"], cache, columns) == ask(judge, ["a", "a"], cache, columns) == [1 / 3, 1 / 3]
    assert len(judge.asked) == 4 and len(cache) == 0


def test_a_reward_without_identity_is_always_asked(tmp_path):
    judge, cache = Judge(), ScoreCache(tmp_path / "c")
    judge.version = None
    ask(judge, ["a"], cache)
    ask(judge, ["a"], cache)
    assert judge.asked == ["a", "a"] and len(cache) == 0 and not (tmp_path / "c").exists()


def test_a_changed_version_is_asked_again(tmp_path):
    cache, changed = ScoreCache(tmp_path / "c"), Judge()
    ask(Judge(), ["a"], cache)
    changed.version = "2"
    ask(changed, ["a"], cache)
    assert changed.asked == ["a"]


def test_other_weights_and_other_company_change_no_part(tmp_path):
    judge, cache = Judge(), ScoreCache(tmp_path / "c")
    ask(judge, ["a", "bb"], cache)
    other = Judge()
    values = ask(resolve_rewards([other, "repetition"], [3.0, 1.0]), ["a", "bb"], cache)
    assert other.asked == [] and values == [1.0, 2.0]


@pytest.mark.parametrize("failure", [math.nan, math.inf, Failed("late"), TimeoutError("late")])
def test_failures_are_not_kept(tmp_path, failure):
    class Flaky(Judge):
        def judge(self, text):
            if isinstance(failure, Exception):
                raise failure
            return failure

    flaky, cache = Flaky(), ScoreCache(tmp_path / "c")
    assert ask(flaky, ["a"], cache) == [None]
    flaky.judge = len
    assert ask(flaky, ["a"], cache) == [1.0]


def test_not_applicable_is_kept(tmp_path):
    judge = Judge()
    judge.judge = lambda text: None
    ask(judge, ["a"], ScoreCache(tmp_path / "c"))
    ask(judge, ["a"], ScoreCache(tmp_path / "c"))
    assert judge.asked == ["a"]


def test_what_was_asked_before_an_interrupt_is_kept(tmp_path):
    class Stopped(Judge):
        def judge(self, text):
            if text == "ccc":
                raise KeyboardInterrupt
            return 1.0

    with pytest.raises(KeyboardInterrupt):
        ask(Stopped(), ["a", "bb", "ccc"], ScoreCache(tmp_path / "c"))
    assert len(ScoreCache(tmp_path / "c")) == 2


@given(st.integers(1, 200), st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_a_file_cut_anywhere_loses_its_last_line_only(tmp_path, cut, values):
    file = tmp_path / "c"
    file.unlink(missing_ok=True)
    keys = [score_key("i", {"completions": text}) for text in "abc"]
    for key, value in zip(keys, values, strict=True):
        ScoreCache(file).add({key: value})
    whole = file.read_bytes()
    file.write_bytes(whole[: -min(cut, len(whole.splitlines()[-1]))])
    cache = ScoreCache(file)
    assert [cache[key] for key in keys[:2]] == values[:2]
    cache.add({"later": 0.5})
    again = ScoreCache(file)
    assert again["later"] == 0.5 and [again[key] for key in keys[:2]] == values[:2]
    assert (keys[2] in again) == (keys[2] in cache)


NO_SCORES = ["{}", "[1]", "3", '{"key": "k"}', '{"key": 3, "score": 1.0}', '{"key": "k", "score": "1"}',
             '{"key": "k", "score": NaN}', "\xff"]  # fmt: skip


@pytest.mark.parametrize("line", NO_SCORES)
def test_lines_that_hold_no_score_are_passed_over(tmp_path, line):
    file = tmp_path / "c"
    file.write_bytes(line.encode("latin-1") + b"\n" + json.dumps({"key": "good", "score": 1.0}).encode() + b"\n")
    cache = ScoreCache(file)
    assert len(cache) == 1 and cache["good"] == 1.0


def test_a_cache_that_cannot_be_written_or_read_says_so(tmp_path):
    cache = ScoreCache(tmp_path / "c")
    (tmp_path / "c").mkdir()
    with pytest.raises(RunError, match=r"cannot be written: .*what is finished is kept"):
        cache.add({"k": 1.0})
    with pytest.raises(RunError, match=r"cannot be read: .*may be deleted"):
        ScoreCache(tmp_path / "c")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_is_explained(tmp_path):
    cache = ScoreCache(tmp_path / "c")
    (tmp_path / "c").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"No space left on device. Make room"):
        cache.add({"k": 1.0})
