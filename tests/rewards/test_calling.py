"""How rewards are called: by keyword as in TRL, on copies of their inputs, and awaited."""

import asyncio
import functools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import RewardError
from latentknobs.rewards import resolve_rewards, score_all

PROMPTS, COMPLETIONS, ANSWERS = ["p", "qq", "rrr"], ["x", "yy", "zzz"], [10, 20, 30]


def values(reward, columns=None, ids=None, completions=COMPLETIONS, **settings):
    columns = {"answer": ANSWERS} if columns is None else columns
    return [s.value for s in score_all(reward, PROMPTS, completions, columns, completion_ids=ids, **settings)]


def lengths(texts):
    return [float(len(text)) for text in texts]


class Judge:
    def __call__(self, completions, **columns):
        return lengths(completions)

    def method(self, completions, answer):
        return [len(text) + number for text, number in zip(completions, answer, strict=True)]

    @staticmethod
    def static(*, completions, **columns):
        return lengths(completions)

    @classmethod
    def of_class(cls, prompts, completions, answer):
        return lengths(completions)


class AsyncJudge:
    async def __call__(self, completions, **columns):
        await asyncio.sleep(0)
        return lengths(completions)


def swapped(completions, prompts, **columns):
    return lengths(completions)


def with_default(completions, log=None, **columns):
    assert log is None
    return lengths(completions)


def documented(completions, **columns):
    assert columns.keys() == {"prompts", "answer"}
    return lengths(completions)


def keywords(**everything):
    assert everything.keys() == {"prompts", "completions", "answer"}
    return lengths(everything["completions"])


def without_rest(prompts, completions):
    return lengths(completions)


def no_prompts(completions):
    return lengths(completions)


def keyword_only(*, completions, prompts):
    return lengths(completions)


def by_position(first, second, /):
    return lengths(second)


def by_position_named(completions, prompts, /):
    return lengths(completions)


def by_position_with_rest(completions, /, **columns):
    assert columns.keys() == {"prompts", "answer"}
    return lengths(completions)


def by_position_and_default(completions, other=3, /):
    assert other == 3
    return lengths(completions)


def anything(*values):
    assert values == (PROMPTS, COMPLETIONS)
    return lengths(values[1])


def anything_by_name(*values, **named):
    assert values == () and named.keys() == {"prompts", "completions", "answer"}
    return lengths(named["completions"])


@functools.wraps(swapped)
def wrapped(*values, **named):
    return swapped(*values, **named)


def bound(scale, completions, **columns):
    return [scale * length for length in lengths(completions)]


RIGHT = [
    swapped, with_default, documented, keywords, without_rest, no_prompts, keyword_only, by_position, by_position_named,
    by_position_with_rest, by_position_and_default, anything, anything_by_name, wrapped, Judge(), Judge.static, Judge.of_class,
    Judge().of_class, AsyncJudge(), functools.partial(bound, 1.0), functools.partial(bound, scale=1.0),
    lambda completions: lengths(completions), lambda *, completions, **rest: lengths(completions),
    lambda prompts, completions: np.array(lengths(completions)), lambda completions, **rest: torch.tensor(lengths(completions)),
    lambda completions, **rest: map(len, completions),
]  # fmt: skip


@pytest.mark.parametrize("reward", RIGHT, ids=lambda reward: getattr(reward, "__name__", type(reward).__name__))
def test_a_reward_receives_what_its_signature_names(reward):
    assert values(reward) == [1.0, 2.0, 3.0]


def test_columns_arrive_by_name_and_win_over_defaults():
    def reward(answer, completions, log=None):
        assert log == ["a", "b", "c"]
        return answer

    assert values(reward, {"answer": ANSWERS, "log": ["a", "b", "c"]}) == ANSWERS
    assert values(Judge().method) == [11.0, 22.0, 33.0]
    assert values(lambda answer: answer) == ANSWERS


def test_tokens_arrive_as_lists_where_they_are_known():
    ids = [(1,), (2, 3), ()]

    def reward(completion_ids):
        assert completion_ids == [[1], [2, 3], []]
        return lengths(completion_ids)

    assert values(reward, ids=ids) == values(lambda **named: lengths(named["completion_ids"]), ids=ids) == [1.0, 2.0, 0.0]
    with pytest.raises(RewardError, match="requires 'completion_ids', and is called with prompts, completions, answer"):
        values(reward)


def test_what_trainers_add_is_there_where_it_is_named():
    def reward(completions, trainer_state, log_extra, log_metric, **columns):
        log_extra("length", lengths(completions))
        log_metric("mean", 2.0)
        assert columns.keys() == {"prompts", "answer"}
        return [length * 0.5**trainer_state.global_step for length in lengths(completions)]

    assert values(reward) == [1.0, 2.0, 3.0]


WRONG = {
    "texts": lambda texts, **columns: lengths(texts),
    "answers": lambda completions, answers: answers,
    "c": lambda p, c: lengths(c),
    "columns": type("Three", (), {"__call__": lambda self, a, b, columns, /: []})(),
    "text": type("One", (), {"__call__": lambda self, text, /: []})(),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_reward_requires_and_nobody_has_is_named_before_it_is_called(name):
    with pytest.raises(RewardError, match=rf"requires .*'{name}', and is called with .*, answer\. Add such a"):
        values(WRONG[name])


@pytest.mark.parametrize("column", ["prompts", "completions", "completion_ids"])
def test_a_column_with_the_name_of_an_argument_is_refused(column):
    with pytest.raises(RewardError, match=rf"have a column '{column}', the name of an argument of every reward\. Rename it"):
        values(documented, {column: ANSWERS})


class TestInputs:
    """Whatever a reward does to its inputs, the next call and the run see what was there before."""

    @staticmethod
    def spoil(**named):
        for column in named.values():
            for value in column:
                if isinstance(value, list):
                    value.append("seen")
                if isinstance(value, dict):
                    value.clear()
                if isinstance(value, np.ndarray | torch.Tensor):
                    value += 1
            column.clear()

    def test_columns_prompts_and_completions(self):
        seen = []

        def reward(**named):
            seen.append(repr(named))
            n = len(named["completions"])
            self.spoil(**named)
            return [1.0] * n

        chat = ({"role": "user", "content": [{"type": "text", "text": "hi"}]},)
        columns = {"steps": [["a"], ["b"]], "meta": [{"deep": {"er": [1]}}, {}], "array": [np.zeros(2), torch.zeros(2)]}
        before = repr((chat, columns))
        for rewards in (reward, [reward, reward]):
            score_all(rewards, [chat, "plain"], ["x", "y"], columns, completion_ids=[[1], [2]])
        assert len(seen) == 3 and len(set(seen)) == 1
        assert repr((chat, columns)) == before

    def test_rows_that_share_a_value_do_not_see_each_other(self):
        shared = ["a", "b"]  # several responses to one prompt

        def pops(completions, steps, **columns):
            return [float(len([step.pop() for _ in range(2)])) for step in steps]

        assert values(pops, {"steps": [shared] * 3}) == [2.0] * 3 and shared == ["a", "b"]

    def test_items_that_are_scored_again_one_by_one_are_as_they_were(self):
        def reward(completions, steps, **columns):
            for step in steps:
                step.append(1)
            if len(completions) > 1:
                raise ValueError("not together")
            return [float(len(steps[0]))]

        assert values(reward, {"steps": [[], [0], []]}) == [1.0, 2.0, 1.0]

    def test_what_cannot_be_copied_is_passed_as_it_is(self):
        lock = threading.Lock()

        def reward(completions, client, **columns):
            return [float(one is lock) for one in client]

        assert values(reward, {"client": [lock] * 3}) == [1.0] * 3

    @given(st.lists(st.lists(st.integers(), max_size=3), min_size=3, max_size=3))
    def test_a_reward_that_spoils_everything_scores_the_same_twice(self, steps):
        def reward(completions, steps, **columns):
            found = lengths(steps)
            for step in steps:
                step *= 2
            return found

        assert values(reward, {"steps": steps}) == values(reward, {"steps": steps}) == lengths(steps)


class TestAwaited:
    async def gathered(self, completions, **columns):
        async def one(text):
            await asyncio.sleep(0.001)
            return float(len(text))

        return await asyncio.gather(*map(one, completions))

    def test_also_inside_a_running_loop_as_in_notebooks(self):
        async def notebook():
            return values(self.gathered)

        assert values(self.gathered) == asyncio.run(notebook()) == [1.0, 2.0, 3.0]

    def test_every_call_has_the_same_loop_so_that_clients_stay_connected(self):
        loops = set()

        async def reward(completions, **columns):
            loops.add(asyncio.get_running_loop())
            return lengths(completions)

        assert values([reward, reward], batch=1) == [2.0, 4.0, 6.0]
        assert len(loops) == 1

    def test_a_function_that_returns_something_to_await(self):
        assert values(lambda **named: self.gathered(**named)) == [1.0, 2.0, 3.0]

    def test_an_exception_costs_its_own_item(self):
        async def fussy(completions, **columns):
            await asyncio.sleep(0)
            if "yy" in completions:
                raise asyncio.CancelledError if columns["answer"][0] == 20 else TimeoutError("late")
            return lengths(completions)

        scores = score_all(fussy, PROMPTS, COMPLETIONS, {"answer": ANSWERS})
        assert [s.value for s in scores] == [1.0, None, 3.0] and scores[1].error == "RuntimeError: it was cancelled."

    @pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt])
    def test_an_exit_reaches_the_caller_and_later_rewards_still_run(self, stop):
        async def stopped(completions, **columns):
            raise stop

        with pytest.raises(stop):
            values(stopped)
        assert values(self.gathered) == [1.0, 2.0, 3.0]

    def test_what_it_returns_is_checked_like_everything_else(self):
        async def unordered(completions, **columns):
            return set(lengths(completions))

        async def lazily(completions, **columns):
            for text in completions:
                yield float(len(text))

        for reward in (unordered, lazily):
            with pytest.raises(RewardError, match="return a list of 3 numbers"):
                values(reward)


def test_a_generator_that_is_spent_is_an_error_and_not_a_missing_score():
    spent = iter([1.0, 2.0, 3.0])
    reward = resolve_rewards(lambda completions: spent)
    assert values(reward) == [1.0, 2.0, 3.0]
    with pytest.raises(RewardError, match=r"returned 0 values for 3 completions.*read only once"):
        values(reward)


def test_half_a_character_in_a_completion_reaches_the_reward_and_the_cache(tmp_path):
    from latentknobs.rewards import ScoreCache

    def reward(completions, **columns):
        return lengths(completions)

    reward.version = "1"
    for _ in range(2):
        cache = ScoreCache(tmp_path / "cache")
        assert values(reward, {"note": ["\udc00"] * 3}, completions=["\ud83d", "a\ud83d", ""], cache=cache) == [1.0, 2.0, 0.0]
    assert len(cache) == 3
