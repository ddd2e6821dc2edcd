"""train() end to end on the packaged testbed, small: stages, reuse, resumption, seeds, refusals that lose nothing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import latentknobs as lk
from latentknobs import testbed
from latentknobs.config import read_yaml
from latentknobs.data.examples import Pair
from latentknobs.errors import ConfigError, DataError, NoPairsError, RewardError, UnknownNameError
from latentknobs.evaluation.report import CONTROLS, TRAINED
from latentknobs.learners.lpo.learner import LPO
from latentknobs.policies.rules import EDT

SMALL = {
    "train_prompts": 12, "rollouts": 4, "eval_size": 6, "eval_seeds": 2, "tune_size": 4, "max_new_tokens": 10, "steps": 6,
    "hidden": 16, "pairs_per_step": 8, "keep_head": True,
}  # fmt: skip
KNOBS = ["temperature:0,0.5,1"]
FILES = ("rollouts/00000.jsonl", "scores/00000.jsonl", "examples.jsonl", "features/00000.safetensors", "heads/main.safetensors")


def length(prompts, completions, **columns):
    """A reward that tells nearly all responses apart."""
    return [float(len(text)) for text in completions]


length.version = "1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = lk.train(knobs=KNOBS, reward=length, output_dir=folder / "a", rounds=2, **SMALL)
    return run


def test_a_run_leaves_everything_it_promises(finished):
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*") if p.is_file()}
    for number in (1, 2):
        files = (
            "rollouts/00000.jsonl",
            "scores/00000.jsonl",
            "examples.jsonl",
            "features/00000.safetensors",
            "heads/main.safetensors",
        )
        assert {f"round-{number}/{file}" for file in (*files, "prompts.jsonl")} <= names
    assert {"config.yaml", "README.md", "metrics.jsonl", "manifest.jsonl", "plan.json", "evaluation/summary.json"} <= names
    assert not [name for name in names if "partial" in name or "checkpoint" in name]
    assert {"adapter/knob_config.json", "adapter/knob_head.safetensors", "adapter/README.md"} <= names
    rows = [json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()]
    assert len([r for r in rows if r["head"] == "main"]) == 2 * SMALL["steps"]
    assert all(r["loss"] > 0 for r in rows)


def test_every_baseline_is_in_the_report(finished):
    assert set(finished.report.rewards) - {*CONTROLS, TRAINED} == {
        "learned head", "temperature 0", "temperature 0.5", "temperature 1", "greedy decoding", "uniform mixture",
        "statistics-only head", "best constant per task", finished.report.tuned,
    }  # fmt: skip
    assert all(values.shape == (2, 6) for values in finished.report.rewards.values())
    assert finished.report.tuned in finished.report.tuning


def test_the_second_round_was_sampled_by_the_first_rounds_head_and_started_from_it(finished):
    one, two = (load_file(finished.path / f"round-{n}" / "heads" / "main.safetensors") for n in (1, 2))
    assert torch.equal(one["shift_F"], two["shift_F"])
    assert not torch.equal(one["mlp.0.weight"], two["mlp.0.weight"])
    assert (one["mlp.0.weight"] - two["mlp.0.weight"]).abs().max() < 0.1
    first = finished.path / "round-1" / "heads" / "rival.safetensors"
    assert first.read_bytes() == (finished.path / "adapter" / "rival_head.safetensors").read_bytes()


def stamps(path):
    """Times of the stages' files."""
    files = [p for p in path.rglob("*.*") if "round-" in str(p.relative_to(path))]
    return {str(p.relative_to(path)): p.stat().st_mtime_ns for p in files}


def test_a_finished_run_is_reused_whole(finished):
    before = stamps(finished.path)
    again = lk.train(knobs=KNOBS, reward=length, output_dir=finished.path, rounds=2, **SMALL)
    assert stamps(finished.path) == before
    for name, value in finished.report.rewards.items():
        assert (again.report.rewards[name] == value.round(6)).all()


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"beta": 0.7}, {"prompts", "rollouts", "scores", "examples", "features"}),
        ({"pairs_per_prompt": 2}, {"prompts", "rollouts", "scores"}),
        ({"seed": 5}, set()),
        (
            {"first_round": "balanced"},
            {"prompts", "scores", "examples", "features", "heads"},
        ),  # one knob: the same rollouts again
        ({}, {"prompts", "rollouts", "scores", "examples", "features", "heads"}),
    ],
)
def test_a_changed_setting_redoes_only_what_depends_on_it(finished, tmp_path, change, kept):
    folder = tmp_path / "copy"
    shutil.copytree(finished.path, folder)
    before = stamps(folder)
    lk.train(knobs=KNOBS, reward=length, output_dir=folder, rounds=1, **(SMALL | {"eval_size": 0} | change))
    after = stamps(folder)
    same = {name.split("/")[1].split(".")[0] for name in before if "round-1/" in name and before[name] == after[name]}
    assert same == kept


def test_an_interrupted_run_goes_on_and_ends_the_same(finished, tmp_path):
    calls = []

    def fragile(prompts, completions, **columns):
        calls.append(len(prompts))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return length(prompts, completions)

    fragile.__name__ = "length"
    folder = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        lk.train(knobs=KNOBS, reward=fragile, output_dir=folder, rounds=2, **SMALL)
    rollouts = (folder / "round-1" / "rollouts" / "00000.jsonl").stat()
    run = lk.train(knobs=KNOBS, reward=fragile, output_dir=folder, rounds=2, **SMALL)
    assert (folder / "round-1" / "rollouts" / "00000.jsonl").stat().st_mtime_ns == rollouts.st_mtime_ns
    for name in ("knob_head.safetensors", "rival_head.safetensors"):
        assert (run.path / "adapter" / name).read_bytes() == (finished.path / "adapter" / name).read_bytes()


def test_equal_rewards_end_with_advice_and_keep_the_rollouts(tmp_path):
    def flat(prompts, completions, **columns):
        return [1.0] * len(prompts)

    with pytest.raises(NoPairsError, match="nothing to learn from"):
        lk.train(knobs=KNOBS, reward=flat, output_dir=tmp_path, **SMALL)
    assert (tmp_path / "round-1" / "rollouts" / "00000.jsonl").exists()
    assert (tmp_path / "round-1" / "scores" / "00000.jsonl").exists()


def test_a_wrong_reward_keeps_the_rollouts(tmp_path):
    def short(prompts, completions, **columns):
        return [1.0]

    with pytest.raises(RewardError, match="short"):
        lk.train(knobs=KNOBS, reward=short, output_dir=tmp_path, **SMALL)
    assert (tmp_path / "round-1" / "rollouts" / "00000.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"knobs": ["temprature"]}, UnknownNameError, 'Did you mean "temperature"'),
        ({"bata": 0.1}, ConfigError, "no setting 'bata'.*beta"),
        ({"beta": -1}, ConfigError, "beta=-1"),
        ({"level": "sentence"}, ConfigError, "no level 'sentence'"),
        ({"order": "vlm"}, ValueError, 'Did you mean "vllm"'),
        ({"prompts": "testbed:maths"}, ConfigError, 'Did you mean "math"'),
        ({"prompts": "/nowhere.jsonl"}, DataError, "nowhere.jsonl"),
        ({"max_new_tokens": 4000}, DataError, "context holds"),
        ({"reward": "exact_macth"}, UnknownNameError, "exact_match"),
        ({"model": "/no/such/model"}, ConfigError, "cannot be loaded"),
        ({"features": ("entropi",)}, ConfigError, 'Did you mean "entropy"'),
        ({"pair_rule": "top_bottom"}, ConfigError, "second_reward"),
    ],
)
def test_bad_input_is_one_paragraph_that_names_it(tmp_path, arguments, error, told):
    with pytest.raises(error, match=told) as caught:
        lk.train(**({"knobs": KNOBS, "output_dir": tmp_path} | SMALL | arguments))
    assert isinstance(caught.value, lk.errors.LatentKnobsError)
    assert "\n" not in str(caught.value)


def test_a_model_object_needs_its_tokenizer(tmp_path):
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        lk.train(knobs=KNOBS, model=testbed.load_model(), output_dir=tmp_path)


def test_objects_and_lists_work_in_place_of_names(tmp_path):
    run = lk.train(
        knobs=[lk.KnobSpace.of("temperature:0.5,1").knobs[0], {"top_p": [0.9, 1.0]}], model=testbed.load_model(),
        tokenizer=testbed.load_tokenizer(), prompts=[f"Story: Once there was a dog {i}" for i in range(20)], reward=length,
        level="token", objective="tokens_separate", output_dir=tmp_path, **SMALL,
    )  # fmt: skip
    assert run.adapter.space.K == 4
    saved = read_yaml(run.path / "config.yaml")
    assert saved["space"]["knobs"] == [{"temperature": [0.5, 1.0]}, {"top_p": [0.9, 1.0]}]


def test_pairs_are_numbers_of_rollouts_of_one_prompt(finished):
    rollouts = [json.loads(line) for line in (finished.path / "round-1/rollouts/00000.jsonl").read_text().splitlines()]
    scores = [json.loads(line)["score"] for line in (finished.path / "round-1/scores/00000.jsonl").read_text().splitlines()]
    for line in (finished.path / "round-1/examples.jsonl").read_text().splitlines():
        row = json.loads(line)
        pair = Pair(row["prompt"], *row["responses"])
        assert rollouts[pair.chosen]["prompt"] == rollouts[pair.rejected]["prompt"] == pair.prompt
        assert scores[pair.chosen] > scores[pair.rejected]


def test_another_reward_of_the_same_name_is_noticed(finished, tmp_path):
    def shortness(prompts, completions, **columns):
        return [-float(len(text)) for text in completions]

    shortness.__name__ = "length"
    shutil.copytree(finished.path, tmp_path / "copy")
    run = lk.train(knobs=KNOBS, reward=shortness, output_dir=tmp_path / "copy", rounds=1, **SMALL)
    assert (run.path / "round-1/rollouts/00000.jsonl").read_bytes() == (
        finished.path / "round-1/rollouts/00000.jsonl"
    ).read_bytes()
    assert (run.path / "round-1/examples.jsonl").read_bytes() != (finished.path / "round-1/examples.jsonl").read_bytes()
    assert all((values < 0).all() for values in run.report.rewards.values())


def test_another_model_of_the_same_shape_is_noticed(tmp_path):
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    settings = {"knobs": KNOBS, "reward": length, "tokenizer": tokenizer, "output_dir": tmp_path, **(SMALL | {"eval_size": 0})}
    lk.train(model=model, **settings)
    before = (tmp_path / "round-1/rollouts/00000.jsonl").read_bytes()
    model.model.layers[0].mlp.down_proj.weight.mul_(0)
    lk.train(model=model, **settings)
    assert (tmp_path / "round-1/rollouts/00000.jsonl").read_bytes() != before


def test_a_run_without_evaluation_keeps_no_report_of_an_earlier_head(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "copy")
    assert (tmp_path / "copy/report.html").exists()
    lk.train(knobs=KNOBS, reward=length, output_dir=tmp_path / "copy", rounds=1, **(SMALL | {"eval_size": 0, "beta": 3.0}))
    assert not (tmp_path / "copy/report.html").exists()
    assert not (tmp_path / "copy/evaluation/summary.json").exists()
    rows = [json.loads(line) for line in (tmp_path / "copy/metrics.jsonl").read_text().splitlines()]
    assert {row["round"] for row in rows} == {1}


def test_own_held_out_prompts_are_the_ones_that_are_judged(tmp_path):
    mine = [f"Story: There was a horse number {n}" for n in range(5)]
    asked = []

    def spy(prompts, completions, **columns):
        asked.extend(prompts)
        return length(prompts, completions)

    run = lk.train(knobs=KNOBS, reward=spy, eval_prompts=mine, output_dir=tmp_path, **SMALL)
    assert set(mine) <= set(asked)
    assert run.report.rewards["learned head"].shape == (2, 5)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_made_again_without_what_is_still_good(tmp_path, name, capsys):
    settings = {
        "knobs": KNOBS,
        "reward": "repetition",
        "output_dir": tmp_path,
        **(SMALL | {"eval_size": 0, "max_new_tokens": 30}),
    }
    lk.train(**settings)
    before = {file: (tmp_path / "round-1" / file).read_bytes() for file in FILES}
    times = {file: (tmp_path / "round-1" / file).stat().st_mtime_ns for file in FILES}
    damaged = tmp_path / "round-1" / name
    damaged.write_bytes(before[name][:-7])
    capsys.readouterr()
    lk.train(**settings)
    told = capsys.readouterr().err
    assert f"{len(before[name]) - 7} bytes instead of {len(before[name])}: it is computed again" in told
    assert {file: (tmp_path / "round-1" / file).read_bytes() for file in FILES} == before
    redone = {file for file in FILES if (tmp_path / "round-1" / file).stat().st_mtime_ns != times[file]}
    assert redone == {name}


def test_a_half_written_line_of_metrics_does_not_stop_a_resumed_run(tmp_path):
    settings = {
        "knobs": KNOBS,
        "reward": "repetition",
        "output_dir": tmp_path,
        **(SMALL | {"eval_size": 0, "max_new_tokens": 30}),
    }
    lk.train(**settings)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 1, "he')
    lk.train(**(settings | {"beta": 0.5}))
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"device": "bogus"}, "device 'bogus' cannot be used"),
        ({"knobs": 5}, "knobs=5"),
        ({"reward": 5}, "5 is not a reward"),
        ({"prompts": [1, 2]}, "Prompt 1 is 1"),
        ({"prompts": [{"prompt": "a", "completions": 1}]}, "column 'completions'"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"learning_rate": 1e6, "steps": 60}, "Lower learning_rate"),
        ({"level": "every:" + "9" * 25}, "no level"),
    ],
)
def test_hostile_settings_are_refused_in_our_own_words(tmp_path, arguments, told):
    with pytest.raises(lk.errors.LatentKnobsError, match=told):
        lk.train(**({"knobs": KNOBS, "reward": length, "output_dir": tmp_path} | SMALL | arguments))


def test_a_store_that_is_streamed_gives_the_same_heads_as_one_in_memory(finished, tmp_path):
    run = lk.train(knobs=KNOBS, reward=length, output_dir=tmp_path, feature_ram=1e-6, rounds=2, **(SMALL | {"eval_size": 0}))
    for name in ("knob_head.safetensors", "rival_head.safetensors"):
        assert (run.path / "adapter" / name).read_bytes() == (finished.path / "adapter" / name).read_bytes()


def test_a_learner_that_needs_options_refuses_an_explorer_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(LPO, "explorer", lambda self, module: EDT(base=1.0, theta=1.0))
    with pytest.raises(ConfigError, match=r"the learner 'lpo' learns from the options .*explorer, EDT, chooses values"):
        lk.train(knobs=KNOBS, reward=length, objective="nll", output_dir=tmp_path, **SMALL)
    with pytest.raises(UnknownNameError, match=r"There is no learner 'lop'\. Did you mean \"lpo\""):
        lk.train(knobs=KNOBS, learner="lop", output_dir=tmp_path, **SMALL)


def test_a_learner_whose_module_no_adapter_can_hold_is_refused_before_the_rollouts(tmp_path, monkeypatch):
    monkeypatch.setattr(LPO, "module", lambda self, mean_F, std_F: torch.nn.Linear(len(mean_F), 3))
    with pytest.raises(ConfigError, match=r"The learner 'lpo' trains a Linear, which an adapter cannot hold"):
        lk.train(knobs=KNOBS, reward=length, output_dir=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_name_and_prompts_without_order_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="output_dir"):
        lk.train(knobs=KNOBS, reward=length, output_dir="", **SMALL)
    with pytest.raises(DataError, match="a set, which has no order"):
        lk.train(knobs=KNOBS, reward=length, output_dir=tmp_path, **SMALL | {"prompts": {"a b", "c d"}})
