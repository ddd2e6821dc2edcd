"""Statistics against known answers, and evaluate() on the packaged testbed."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentknobs as lk
from latentknobs import testbed
from latentknobs.adapter import describe_model
from latentknobs.errors import AdapterError
from latentknobs.evaluation.evaluate import HEAD, Report
from latentknobs.evaluation.statistics import bootstrap, win_share
from latentknobs.heads import OptionHead
from latentknobs.policies import ConstantPolicy
from latentknobs.segments import parse_level


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    inside = [(i := bootstrap(rng.exponential(size=80), seed=s)).low <= 1.0 <= i.high for s in range(200)]
    assert 0.89 <= np.mean(inside) <= 0.99


def test_the_interval_matches_the_normal_one_for_many_prompts():
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


rewards = st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=2)


@given(rewards, rewards)
def test_wins_and_losses_are_two_halves(ours, theirs):
    ours_SP, theirs_SP = np.array(ours, float), np.array(theirs, float)
    wins, losses = win_share(ours_SP, theirs_SP), win_share(theirs_SP, ours_SP)
    assert np.allclose(wins + losses, 1)
    assert (win_share(ours_SP, ours_SP) == 0.5).all()


def report(head, constant):
    values = {HEAD: np.array([head], float), "temperature 1": np.array([constant], float)}
    return Report(values, ["a", "b"] * (len(head) // 2), "temperature 1", {"temperature 1": 0.0})


def test_the_verdict_is_as_strong_as_the_interval():
    assert "beats" in report([1.0, 1.1] * 20, [0.0, 0.1] * 20).verdict()
    assert "worse" in report([0.0, 0.1] * 20, [1.0, 1.1] * 20).verdict()
    assert "learned nothing" in report([0.0, 1.0] * 20, [1.0, 0.0] * 20).verdict()


def test_tasks_are_compared_on_their_own_prompts():
    found = report([1.0, 0.0] * 10, [0.0, 0.0] * 10)
    assert found.task_names == ["all", "a", "b"]
    assert [found.compare("temperature 1", task).gain.mean for task in ("all", "a", "b")] == [0.5, 1.0, 0.0]
    assert [found.compare("temperature 1", task).wins.mean for task in ("a", "b")] == [1.0, 0.5]


def test_a_report_survives_json():
    first = report([1.0, 0.25] * 10, [0.5, 0.0] * 10)
    again = Report.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again.verdict() == first.verdict()
    assert again.table() == first.table()


@pytest.fixture(scope="module")
def adapter():
    model = testbed.load_model()
    space = lk.KnobSpace.of("temperature:0,1")
    head = OptionHead(space, model.config.hidden_size, 8)
    torch.nn.init.constant_(head.mlp[-1].bias[:1], 50.0)
    return lk.KnobAdapter(space, head, parse_level("sequence"), ("hidden",), describe_model(model))


def test_a_head_that_is_a_constant_ties_with_it(adapter):
    found = lk.evaluate(
        adapter, seeds=2, train_prompts=8, eval_size=6, tune_size=4, max_new_tokens=8,
        extra={"also cold": ConstantPolicy(adapter.space, 0)},
    )  # fmt: skip
    assert found.compare("temperature 0").gain.mean == 0
    assert found.compare("also cold").wins.mean == 0.5
    assert (found.rewards["temperature 0"] == found.rewards["greedy decoding"]).all()
    assert "entropy-only head" not in found.rewards


def test_own_prompts_are_split_by_hash_or_given_apart(adapter):
    def length(prompts, completions, **columns):
        return [len(text) for text in completions]

    mine = [f"Story: A dog number {n}" for n in range(30)]
    settings = {"reward": length, "seeds": 1, "max_new_tokens": 4, "model": "testbed"}
    split = lk.evaluate(adapter, prompts=mine, **settings)
    assert 0 < split.rewards[HEAD].shape[1] < 15
    apart = lk.evaluate(adapter, prompts=mine[:5], tune_prompts=mine[5:], **settings)
    assert apart.rewards[HEAD].shape == (1, 5)


def test_an_adapter_of_another_model_is_refused_before_anything_is_generated(adapter):
    other = lk.KnobAdapter(adapter.space, adapter.head, adapter.segmenter, ("hidden",), adapter.base | {"layers": 40})
    with pytest.raises(AdapterError, match="number of layers 40"):
        lk.evaluate(other, seeds=1)
