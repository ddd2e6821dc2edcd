"""Asking rewards: what they are told, which failures are recorded, and which end the run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import BrokenRewardError, RewardError
from latentknobs.rewards import Failed, Score, check_scored, failure_line, resolve_rewards, score_all

TEXTS = ["a", "bb", "ccc", "dddd"]


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def score(reward, completions=TEXTS, **settings):
    return score_all(reward, ["p"] * len(completions), completions, {}, **settings)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=12), st.integers(1, 5))
def test_batches_change_nothing_and_every_item_is_reported(texts, batch):
    seen = []
    scores = score(length, texts, batch=batch, advance=seen.append)
    assert scores == [Score(float(len(text)), (float(len(text)),)) for text in texts]
    assert sum(seen) == len(texts) and max(seen) <= batch


def test_the_reward_sees_prompts_completions_and_columns():
    def reward(prompts, completions, answer, **columns):
        assert (prompts, completions, answer, columns) == (["p", "q"], ["x", "y"], [1, None], {"task": ["a", "b"]})
        return [0.0, 1.0]

    scores = score_all(reward, ["p", "q"], ["x", "y"], {"answer": [1, None], "task": ["a", "b"]})
    assert [s.value for s in scores] == [0.0, 1.0]


def test_of_a_conversation_the_reward_receives_the_messages():
    def reward(prompts, completions, **columns):
        assert prompts == [[{"role": "user", "content": "hi"}], "plain"]
        assert completions == [[{"role": "assistant", "content": "ho"}], "text"]
        return [0.0, 1.0]

    score_all(reward, [({"role": "user", "content": "hi"},), "plain"], ["ho", "text"], {})


def test_an_exception_in_a_batch_is_narrowed_down_to_its_items():
    calls = []

    def fussy(prompts, completions, **columns):
        calls.append(list(completions))
        if "bb" in completions:
            raise TypeError("no\nbb please.")
        return length(prompts, completions)

    scores = score(fussy, batch=3)
    assert [s.value for s in scores] == [1.0, None, 3.0, 4.0]
    assert scores[1] == Score(None, (None,), "TypeError: no bb please.")
    assert calls == [["a", "bb", "ccc"], ["a"], ["bb"], ["ccc"], ["dddd"]]
    assert failure_line(scores) == "1 of 4 completions have no score. The first: TypeError: no bb please."
    assert failure_line(scores[2:]) is None


def test_an_exception_while_a_generator_yields_is_an_item_of_its_own():
    def lazy(prompts, completions, **columns):
        return (1 / (len(text) - 2) for text in completions)

    assert [s.value for s in score(lazy)] == [-1.0, None, 1.0, 0.5]


@pytest.mark.parametrize("bad", [float("nan"), math.inf, "1", Failed("because")])
def test_a_bad_value_costs_one_item(bad):
    scores = score(lambda prompts, completions, **columns: [1.0, bad, 2.0, 3.0])
    assert [s.value for s in scores] == [1.0, None, 2.0, 3.0]
    assert (scores[1].error == "because") if isinstance(bad, Failed) else (repr(bad) in scores[1].error)


def test_a_single_reward_that_does_not_apply_gives_no_score():
    scores = score(lambda prompts, completions, **columns: [1.0, None, 2.0, 3.0])
    assert scores[1] == Score(None, (None,), "The reward does not apply to it: it returned None.")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_is_no_failure(stop):
    def stopped(prompts, completions, **columns):
        raise stop

    with pytest.raises(stop):
        score(stopped)


def test_a_wrong_number_of_values_ends_at_once():
    calls = []

    def short(prompts, completions, **columns):
        calls.append(1)
        return [1.0]

    with pytest.raises(BrokenRewardError, match="'short' returned 1 values for 4 completions"):
        score(short)
    assert len(calls) == 1


def test_a_reward_that_scores_nothing_names_the_first_cause():
    def broken(prompts, completions, **columns):
        raise KeyError("answer")

    with pytest.raises(RewardError, match=r"'broken' scored none of 4 completions. The first: KeyError: 'answer'\. Repair"):
        score(broken)


def test_a_part_of_a_run_may_fail_as_a_whole():
    def broken(prompts, completions, **columns):
        raise KeyError("answer")

    scores = score(broken, whole=False)
    assert [s.value for s in scores] == [None] * 4
    check_scored([*scores, Score(1.0, (1.0,))], "broken")
    with pytest.raises(RewardError, match="scored none of 4"):
        check_scored(scores, "broken")
    check_scored([], "broken")


class TestSeveral:
    @given(st.lists(st.floats(-5, 5), min_size=2, max_size=4).filter(any))
    def test_the_total_is_the_weighted_sum_and_the_parts_are_kept(self, weights):
        rewards = resolve_rewards([length] * len(weights), weights)
        for text, got in zip(TEXTS, score(rewards), strict=True):
            assert got.parts == (float(len(text)),) * len(weights)
            assert got.value == pytest.approx(sum(weights) * len(text))

    def test_none_adds_nothing_where_another_reward_applies(self):
        def sometimes(prompts, completions, **columns):
            return [None, 10.0, None, 10.0]

        scores = score(resolve_rewards([sometimes, length], [1.0, 0.5]))
        assert [s.value for s in scores] == [0.5, 11.0, 1.5, 12.0]
        assert scores[0].parts == (None, 1.0) and scores[0].error is None

    def test_a_failure_of_one_is_a_failure_of_the_sum_and_says_whose(self):
        def fussy(prompts, completions, **columns):
            return [1.0, math.nan, 1.0, 1.0]

        scores = score([length, fussy])
        assert [s.value for s in scores] == [2.0, None, 4.0, 5.0]
        assert scores[1].parts == (2.0, None)
        assert scores[1].error == "fussy: It returned nan, which is not a finite number."

    def test_a_reward_of_weight_0_is_recorded_and_spoils_nothing(self):
        def watched(prompts, completions, **columns):
            return [7.0, math.nan, None, 7.0]

        scores = score(resolve_rewards([length, watched], [1, 0]))
        assert [s.value for s in scores] == [1.0, 2.0, 3.0, 4.0]
        assert [s.parts[1] for s in scores] == [7.0, None, None, 7.0]

    def test_a_sum_beyond_the_range_of_floats_is_a_failure(self):
        def huge(prompts, completions, **columns):
            return [1e308, 0.0, 0.0, 0.0]

        assert score([huge, huge])[0].error == "It returned inf, which is not a finite number."
