"""Nothing stale is reused: after a change of any input, a run in the same folder ends as one in a new folder."""

import shutil

import pytest
import torch

import latentknobs as lk
from latentknobs import testbed
from latentknobs.data.prompts import is_held_out

SMALL = {
    "knobs": ["temperature:0.5,1"], "train_prompts": 10, "rollouts": 3, "eval_size": 3, "eval_seeds": 1, "tune_size": 2,
    "max_new_tokens": 6, "batch_size": 6, "shard_size": 6, "steps": 4, "hidden": 8, "pairs_per_step": 4,
}  # fmt: skip
THINGS = [(thing, number) for number in range(8) for thing in ("cat", "dog")]
ROWS = [{"prompt": f"Story: There was a {thing} number {n}", "wanted": n, "task": "a"} for thing, n in THINGS]


def paid(prompts, completions, wanted, **columns):
    """Depends on a column of the prompt, and on nothing else beside the text."""
    return [float((len(text) * 7 + 3 * number) % 11) for text, number in zip(completions, wanted, strict=True)]


paid.version = "1"


@pytest.fixture(scope="module")
def model():
    return testbed.load_model(), testbed.load_tokenizer()


@pytest.fixture(scope="module")
def first(model, tmp_path_factory):
    return play(tmp_path_factory.mktemp("first"), model)


def play(path, model, rows=ROWS, **changes):
    lm, tokenizer = model
    settings = SMALL | {"prompts": rows, "reward": paid} | changes
    return lk.train(model=lm, tokenizer=tokenizer, output_dir=path, **settings).path


def results(path):
    names = ("rollouts", "scores", "features", "heads")
    files = [file for name in names for file in (path / "round-1" / name).glob("*")]
    files += [path / "round-1" / "examples.jsonl", path / "round-1" / "prompts.jsonl", path / "evaluation" / "summary.json"]
    return {str(file.relative_to(path)): file.read_bytes() for file in [*files, path / "adapter" / "knob_head.safetensors"]}


def check(first, tmp_path, model, rows=ROWS, **changes):
    """The same in a copy of the first run as in a new folder; returns it with the results of the first."""
    again = play(shutil.copytree(first, tmp_path / "again"), model, rows, **changes)
    fresh = play(tmp_path / "fresh", model, rows, **changes)
    assert results(again) == results(fresh)
    return results(again), results(first), times(again)


def times(path):
    return {file.name: file.stat().st_mtime_ns for file in (path / "round-1" / "rollouts").iterdir()}


def test_a_column_that_the_reward_reads(first, tmp_path, model):
    changed = [row | {"wanted": row["wanted"] + 5 * (number % 2)} for number, row in enumerate(ROWS)]
    now, then, made = check(first, tmp_path, model, changed)
    assert now["round-1/scores/00000.jsonl"] != then["round-1/scores/00000.jsonl"]
    assert made == times(first)  # the model does not read the column


def test_the_task_of_held_out_prompts_alone(first, tmp_path, model):
    changed = [row | {"task": "b" if is_held_out(row["prompt"]) and row["wanted"] % 2 else "a"} for row in ROWS]
    now, then, _ = check(first, tmp_path, model, changed)
    assert now["evaluation/summary.json"] != then["evaluation/summary.json"]


def test_weights_that_are_the_same_numbers_in_another_order(first, tmp_path, model):
    other = testbed.load_model()
    matrix = other.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        matrix.copy_(matrix[torch.arange(len(matrix)).flip(0)])
    now, then, _ = check(first, tmp_path, (other, model[1]))
    assert now["round-1/rollouts/00000.jsonl"] != then["round-1/rollouts/00000.jsonl"]


def test_generation_settings_of_the_model(first, tmp_path, model):
    other = testbed.load_model()
    other.generation_config.eos_token_id = list(range(0, 400, 2))  # a response ends at half of the tokens
    now, then, _ = check(first, tmp_path, (other, model[1]))
    assert now["round-1/rollouts/00000.jsonl"] != then["round-1/rollouts/00000.jsonl"]


def test_the_prompts_of_given_pairs(tmp_path, model):
    def rows(start):
        return [{"prompt": f"Story: {start} {n}", "chosen": " The end.", "rejected": " And so on."} for n in range(20)]

    changes = {"reward": "repetition", "eval_size": 1, "prompts": None}
    first = play(tmp_path / "first", model, **(changes | {"preferences": rows("A cat")}), rows=None)
    now, then, _ = check(first, tmp_path, model, None, **(changes | {"preferences": rows("Two dogs")}))
    assert now["round-1/features/00000.safetensors"] != then["round-1/features/00000.safetensors"]


def test_another_version_of_a_callable_reward(first, tmp_path, model, monkeypatch):
    calls = []

    def counted(prompts, completions, wanted, **columns):
        calls.extend(completions)
        return paid(prompts, completions, wanted)

    counted.version = "1"
    path = play(tmp_path / "run", model, reward=counted)
    asked = len(calls)
    play(path, model, reward=counted)
    assert len(calls) == asked > 0  # its version says that nothing has changed
    counted.version = "2"
    play(path, model, reward=counted)
    assert len(calls) == 2 * asked


def test_a_run_that_is_replaced_says_which_settings_differ(first, tmp_path, model, capsys):
    play(shutil.copytree(first, tmp_path / "again"), model, beta=0.7)
    assert "holds a run with other settings (beta 0.1 -> 0.7): what depends on them is computed again" in capsys.readouterr().err
