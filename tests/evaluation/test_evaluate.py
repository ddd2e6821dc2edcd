"""Statistics against known answers, and evaluate() on the packaged testbed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentknobs as lk
from latentknobs import testbed
from latentknobs.adapter import describe_model
from latentknobs.data.prompts import make_prompts
from latentknobs.errors import AdapterError, ConfigError, LatentKnobsError, RewardError
from latentknobs.evaluation.comparison import (
    Stage,
    best_of,
    judging,
    lineup,
    make_report,
    most_wider,
    numbers_of,
    stages,
    widen,
)
from latentknobs.evaluation.report import BINNED, CONTROLS, GREEDY, HEAD, MEAN, MIXTURE, SHUFFLED, Report
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import ConstantPolicy, GreedyPolicy

ANY = SimpleNamespace(check=lambda policy: None)  # an engine that takes every value
SMALL = {"seeds": 2, "train_prompts": 8, "eval_size": 6, "tune_size": 4, "max_new_tokens": 8}


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


def test_the_interval_of_a_win_rate_stays_between_0_and_1():
    often = report([1.0] * 19 + [0.0], [0.5] * 20).compare("temperature 1").wins
    assert (often.mean, often.high) == (0.95, 1.0) and 0.5 < often.low < 0.95
    seldom = report([0.0] * 19 + [1.0], [0.5] * 20).compare("temperature 1").wins
    assert (seldom.low, seldom.mean) == (0.0, 0.05) and 0.05 < seldom.high < 0.5


def test_a_report_survives_json():
    first = report([1.0, 0.25] * 10, [0.5, 0.0] * 10)
    again = Report.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again.verdict() == first.verdict()
    assert again.table() == first.table()


values = st.lists(st.lists(st.none() | st.integers(0, 3), min_size=6, max_size=6), min_size=2, max_size=2)


@given(values, values, values)
def test_a_failed_score_takes_its_prompt_out_of_every_comparison(head, one, other):
    rewards = {HEAD: np.array(head, float), "one": np.array(one, float), "other": np.array(other, float)}
    tasks = ["a", "a", "b", "b", "c", "c"]
    kept = [p for p in range(6) if all(values[s][p] is not None for values in (head, one, other) for s in (0, 1))]
    if not kept:
        with pytest.raises(RewardError, match="None of the 6 held-out prompts has a score for every response"):
            make_report(rewards, {"one": np.zeros((1, 3))}, tasks)
        return
    found = make_report(rewards, {"one": np.zeros((1, 3))}, tasks)
    only = make_report({name: v[:, kept] for name, v in rewards.items()}, {"one": np.zeros((1, 3))}, [tasks[p] for p in kept])
    assert found.left_out == 6 - len(kept)
    assert found.table() == only.table() and found.task_names == only.task_names
    assert found.best_constant() == only.best_constant()
    assert found.verdict().startswith(only.verdict())
    note = f"{6 - len(kept)} of 6 prompts are left out: the reward failed on a response to them."
    assert (note in found.verdict()) == (len(kept) < 6)
    saved = json.dumps(found.to_dict(), allow_nan=False)
    again = Report.from_dict(json.loads(saved))
    assert again.table() == found.table() and again.left_out == json.loads(saved)["left_out"] == found.left_out


def test_constants_are_tuned_on_the_prompts_that_all_of_them_have_scores_for():
    rewards = {HEAD: np.ones((1, 2)), "hot": np.ones((1, 2)), "cold": np.ones((1, 2))}
    tuning = {"hot": np.array([[0.0, np.nan, 5.0]]), "cold": np.array([[1.0, 2.0, np.nan]])}
    report = make_report(rewards, tuning, ["all"] * 2)
    assert (report.tuned, report.tuning) == ("cold", {"hot": 0.0, "cold": 1.0})
    lost = {"hot": np.array([[np.nan, 1.0]]), "cold": np.array([[np.nan, np.nan]])}
    told = "None of the 2 prompts that tune the constant has a score.*most often on 'cold': 2 of 2 responses"
    with pytest.raises(RewardError, match=told):
        make_report(rewards, lost, ["all"] * 2)


def test_a_reward_that_fails_on_some_prompts_is_evaluated_on_the_others(adapter):
    def fussy(prompts, completions, **columns):
        if any("number 7" in prompt for prompt in prompts):
            raise OSError("no sevens")
        return [float(len(text)) for text in completions]

    mine = [f"Story: A dog number {n}" for n in range(20)]
    found = lk.evaluate(adapter, reward=fussy, prompts=mine[5:12], tune_prompts=mine[12:], seeds=1, max_new_tokens=4)
    assert found.left_out == 1 and np.isnan(found.rewards[HEAD]).sum() == 1
    assert found.compare(HEAD).reward.mean == np.nanmean(found.rewards[HEAD])


@pytest.fixture(scope="module")
def adapter():
    model = testbed.load_model()
    space = lk.KnobSpace.of("temperature:0,1")
    head = OptionHead(space, model.config.hidden_size, 8)
    torch.nn.init.constant_(head.mlp[-1].bias[:1], 50.0)
    return lk.KnobAdapter(space, head, parse_level("sequence"), ("hidden",), describe_model(model))


def test_a_head_that_is_a_constant_ties_with_it(adapter):
    found = lk.evaluate(
        adapter, **SMALL,
        extra={"also cold": ConstantPolicy(adapter.space, 0)},
    )  # fmt: skip
    assert found.compare("temperature 0").gain.mean == 0
    assert found.compare("also cold").wins.mean == 0.5
    assert (found.rewards["temperature 0"] == found.rewards["greedy decoding"]).all()
    assert "entropy-only head" not in found.rewards


def test_policies_by_name_and_adapters_are_compared_too(adapter, tmp_path):
    folder = str(adapter.save_pretrained(tmp_path / "other"))
    by_name = ["constant:temperature=1", "edt:base=1.4,theta=3", folder, GreedyPolicy(), adapter]
    mine = "温度" * 60  # 360 bytes: no file can be called so
    found = lk.evaluate(adapter, against=by_name, extra={mine: "constant:temperature=0"}, **SMALL)
    plain = lk.evaluate(adapter, **SMALL)
    assert [name for name in found.rewards if name not in plain.rewards] == [*by_name[:3], "GreedyPolicy", "KnobAdapter", mine]
    same = [("constant:temperature=1", "temperature 1"), (folder, HEAD), ("KnobAdapter", HEAD), (mine, GREEDY)]
    for name, known in [*same, ("GreedyPolicy", GREEDY), *((name, name) for name in plain.rewards)]:
        assert (found.rewards[name] == plain.rewards[known]).all()
        assert [rollout.ids for rollout in found.rollouts[name]] == [rollout.ids for rollout in plain.rollouts[known]]
    assert found.rollouts["edt:base=1.4,theta=3"] not in plain.rollouts.values()
    assert (found.tuned, found.tuning) == (plain.tuned, plain.tuning)
    assert {*lk.evaluate(adapter, against="greedy", **SMALL).rewards} == {*plain.rewards, "greedy"}


@pytest.mark.parametrize(
    "against, words",
    [
        (["edtt"], "edtt.*Did you mean"),
        (["edt:base=hot"], "hot"),
        (["greedy", "greedy"], "Two policies are called 'greedy'.*extra="),
        ([3], "3 is not a policy"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_generated(adapter, against, words, monkeypatch):
    monkeypatch.setattr("latentknobs.training.sampling.roll_out_batch", lambda *_, **__: pytest.fail("generated"))
    with pytest.raises(LatentKnobsError, match=words):
        lk.evaluate(adapter, against=against, **SMALL)


def test_an_opponent_of_another_model_is_refused(adapter):
    other = lk.KnobAdapter(adapter.space, adapter.head, adapter.segmenter, ("hidden",), adapter.base | {"layers": 40})
    with pytest.raises(AdapterError, match="number of layers 40"):
        lk.evaluate(adapter, against=other, **SMALL)


def test_the_stages_count_their_responses_and_share_no_draws(adapter):
    prompts = make_prompts(["one", "two", "three"], testbed.load_tokenizer())
    tuning, held_out = stages(lineup(adapter.space), prompts, prompts[:2], 4)
    assert (tuning.responses, held_out.responses) == (2 * 3, (1 + 2 + 3) * 2 * 4) and tuning.seed != held_out.seed
    assert [*tuning.policies(adapter, "greedy")] == ["temperature 0", "temperature 1"]
    assert [*held_out.policies(adapter, "greedy")] == [HEAD, "temperature 0", "temperature 1", GREEDY, MIXTURE]  # no second head


def test_own_prompts_are_split_by_hash_or_given_apart(adapter):
    def length(prompts, completions, **columns):
        return [len(text) for text in completions]

    mine = [f"Story: A dog number {n}" for n in range(30)]
    settings = {"reward": length, "seeds": 1, "max_new_tokens": 4, "model": "testbed"}
    split = lk.evaluate(adapter, prompts=mine, **settings)
    assert 0 < split.rewards[HEAD].shape[1] < 15
    apart = lk.evaluate(adapter, prompts=mine[:5], tune_prompts=mine[5:], **settings)
    assert apart.rewards[HEAD].shape == (1, 5)


def test_several_rewards_are_weighed(adapter):
    def length(prompts, completions, **columns):
        return [len(text) for text in completions]

    settings = {"seeds": 1, "max_new_tokens": 4, "prompts": ["Story: A dog"], "tune_prompts": ["Story: A cat"]}
    alone = lk.evaluate(adapter, reward=length, **settings)
    both = lk.evaluate(adapter, reward=[length, "repetition:n=1"], reward_weights=[0.5, 0.0], **settings)
    assert (both.rewards[HEAD] == alone.rewards[HEAD] / 2).all() and both.rewards[HEAD].min() > 0


def test_an_adapter_of_another_model_is_refused_before_anything_is_generated(adapter):
    other = lk.KnobAdapter(adapter.space, adapter.head, adapter.segmenter, ("hidden",), adapter.base | {"layers": 40})
    with pytest.raises(AdapterError, match="number of layers 40"):
        lk.evaluate(other, seeds=1)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_controls_take_part_by_default_and_answer_with_the_heads_own_choices(adapter, level):
    mixed = lk.KnobAdapter(adapter.space, OptionHead(adapter.space, 192, 8), parse_level(level), ("hidden",), adapter.base)
    found = lk.evaluate(mixed, pick="sample", **SMALL)
    assert {*CONTROLS} < {*found.rewards} and found.level == level
    chosen = {value for rollout in found.rollouts[HEAD] for value in rollout.values}
    for name in (SHUFFLED, BINNED):
        assert {value for rollout in found.rollouts[name] for value in rollout.values} <= chosen
    [mean] = {value for rollout in found.rollouts[MEAN] for value in rollout.values}
    assert mean not in chosen and found.notes[MEAN] == f"temperature {mean[0]:.3g}"
    assert f"tuned on {SMALL['tune_size']} responses" in found.notes["numbers"]


def test_a_best_constant_at_the_edge_of_the_options_is_said_to_be_one():
    adapter = SimpleNamespace(space=KnobSpace.of("temperature:0,0.5,1"), training={"trained on": "8 responses"})
    stage = Stage("tuning", [], [None] * 4, 1, 0)

    def numbers(*means):
        labels = [adapter.space.label(k) for k in range(adapter.space.K)]
        return numbers_of(adapter, stage, {name: np.array([[mean] * 4]) for name, mean in zip(labels, means, strict=True)})

    said = "The head was trained on 8 responses; every constant was tuned on 4 responses."
    assert numbers(0, 1, 0) == said, "inside"
    assert numbers(1, 0, 0) == said, "nothing is below 0"
    assert numbers(0, 0, 1) == f"{said} The best, temperature 1, is at the edge: temperature 1.5 was not tried."
    adapter.space = KnobSpace.of("typical_p:0.5,0.95,1")
    assert numbers(0, 0, 1) == said, "nothing is above 1"
    adapter.space = KnobSpace.of("top_k:1,2,4")
    assert numbers(1, 0, 0) == said, "nothing is between 0 and 1"
    adapter.space = KnobSpace.of("temperature:0,0.5,1", "top_p:0.5,1")
    adapter.space = adapter.space.select([adapter.space.options[0], adapter.space.options[3]])
    assert numbers(1, 0) == said, "chosen options have no edge"


@pytest.mark.parametrize(
    ("grids", "earned", "best", "tried"),
    [
        (["temperature:0,0.5,1"], lambda t: -abs(t - 2.1), "temperature 2", ["1.5", "2", "2.5"]),
        (["temperature:0,0.5,1"], lambda t: -abs(t - 0.4), "temperature 0.5", []),
        (["top_p:0.5,0.9"], lambda p: p, "top_p 1", ["1"]),
        (["temperature:0,0.5,1"], lambda t: t, "temperature 5", ["1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5"]),
        (
            ["temperature:0,0.5,1", "top_p:0.8,0.9,1"],
            lambda t, p: -abs(t - 1.5) - abs(p - 0.9),
            "temperature 1.5, top_p 0.9",
            None,
        ),
    ],
)
def test_a_grid_gets_wider_until_the_best_constant_is_not_at_its_edge(grids, earned, best, tried):
    space, stages = KnobSpace.of(*grids), []

    def score(stage):
        stages.append(stage)
        policies = stage.policies(None, "greedy")
        return {name: np.full((1, 4), earned(*policy.space.options[policy.option].values())) for name, policy in policies.items()}

    first = Stage("tuning", [one for one in lineup(space) if one.role == "constant"], [None] * 4, 1, 0)
    found = widen(space, first, score(first), score, ANY)
    assert best_of(found) == best and len({stage.name for stage in stages}) == len(stages) >= 2, "a run plans one"
    extra = [name for name in found if name not in {space.label(k) for k in range(space.K)}]
    assert tried is None or extra == [f"{space.names[0]} {value}" for value in tried]
    assert len(extra) * 4 <= most_wider(space, first)
    head = judging(Stage("evaluation", lineup(space), [], 2, 0), space, found)
    assert [one.name for one in head.compared].count(best) == 1 and head.compared[0].name == HEAD


def test_a_reward_that_fails_beyond_the_grid_does_not_spoil_the_choice_within_it():
    space = KnobSpace.of("temperature:0,0.5,1")

    def score(stage):
        earned = {
            name: policy.space.options[policy.option]["temperature"] for name, policy in stage.policies(None, "greedy").items()
        }
        return {name: np.full((1, 4), t if t <= 1 else np.nan) for name, t in earned.items()}

    first = Stage("tuning", [one for one in lineup(space) if one.role == "constant"], [None] * 4, 1, 0)
    found = widen(space, first, score(first), score, ANY)
    assert best_of(found) == "temperature 1" and len(found) == 4


def test_values_that_the_engine_refuses_are_not_tuned():
    space = KnobSpace.of("temperature:0,0.5,1")

    def check(policy):
        if policy.space.options[policy.option]["temperature"] > 1.5:
            raise ConfigError("too hot")

    def score(stage):
        policies = stage.policies(None, "greedy")
        return {name: np.full((1, 4), policy.space.options[policy.option]["temperature"]) for name, policy in policies.items()}

    first = Stage("tuning", [one for one in lineup(space) if one.role == "constant"], [None] * 4, 1, 0)
    found = widen(space, first, score(first), score, SimpleNamespace(check=check))
    assert [name for name in found if name not in {space.label(k) for k in range(space.K)}] == ["temperature 1.5"]


def test_a_head_that_never_changes_its_mind_has_no_controls(adapter):
    assert not {*CONTROLS} & {*lk.evaluate(adapter, **SMALL).rewards}


def test_adapters_of_several_seeds_share_constants_and_are_judged_together(adapter, monkeypatch):
    from latentknobs.training import sampling

    warm = OptionHead(adapter.space, adapter.head.in_features, 8)
    torch.nn.init.constant_(warm.mlp[-1].bias[1:], 50.0)
    other = lk.KnobAdapter(adapter.space, warm, adapter.segmenter, ("hidden",), adapter.base)
    calls, roll_out = [], sampling.roll_out_batch
    monkeypatch.setattr(sampling, "roll_out_batch", lambda *args, **how: calls.append(args[3]) or roll_out(*args, **how))
    both = lk.evaluate([adapter, other], **SMALL)
    assert both.runs == 2 and both.rewards[HEAD].shape == (4, 6)
    assert len({(policy.identity(), n) for n, policy in enumerate(calls)}) == 3 + 2 + 1 + 2, "tuning, constants, mixture, heads"
    assert (both.rewards[HEAD][:2] == both.rewards["temperature 0"][:2]).all()
    assert (both.rewards[HEAD][2:] == both.rewards["temperature 1"][2:]).all()
    by_sentence = lk.KnobAdapter(adapter.space, adapter.head, parse_level("every:2"), ("hidden",), adapter.base)
    with pytest.raises(LatentKnobsError, match="different trainings"):
        lk.evaluate([adapter, by_sentence], **SMALL)
