"""A changed input redoes the first stage that depends on it, and none before it: real runs of a tiny model.

`test_config.py` shows which stages every other setting enters, `test_subject.py` that every bit of a model counts.
"""

import copy
import json
from typing import Any

import pytest
import torch
import transformers

import latentknobs as lk
from latentknobs import testbed
from latentknobs.config import fields, make_config

ORDER = [
    "round-1/prompts", "round-1/rollouts", "round-1/scores", "round-1/second_scores", "round-1/examples", "round-1/features",
    "round-1/heads", "tuning/rollouts", "tuning/scores", "evaluation/rollouts", "evaluation/scores", "summary",
]  # fmt: skip
ROWS = [{"prompt": f"Story: There was a {thing} number {n}", "n": n} for n in range(9) for thing in ("cat", "dog")]
HELD_OUT = [{"prompt": f"Story: Once a {thing} ran", "n": 1} for thing in ("bird", "fox", "frog", "hen")]


def vowels(prompts, completions, **columns):
    return [float(sum(map(text.count, "aeiou"))) + 0.1 * len(text) for text in completions]


def spaces(prompts, completions, **columns):
    return [float(text.count(" ")) - 0.1 * len(text) for text in completions]


vowels.version = spaces.version = "1"
BASE: dict[str, Any] = {
    "knobs": ["temperature:0.5,1", "top_p:0.5,1"], "prompts": ROWS, "eval_prompts": HELD_OUT, "reward": [vowels, spaces],
    "second_reward": spaces, "train_prompts": 6, "rollouts": 4, "eval_size": 3, "eval_seeds": 1, "tune_size": 2,
    "max_new_tokens": 6, "batch_size": 8, "shard_size": 8, "steps": 2, "hidden": 4, "pairs_per_step": 2, "device": "cpu",
}  # fmt: skip


def language_model(seed=0):
    torch.manual_seed(seed)
    size = len(testbed.load_tokenizer())
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, bos_token_id=None,
        eos_token_id=testbed.load_tokenizer().eos_token_id,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def keys(folder, **changes: Any) -> dict[str, dict[str, str]]:
    """The key of every file of every stage of a real run."""
    settings = {"model": language_model(), "tokenizer": testbed.load_tokenizer()} | copy.copy(BASE) | changes
    lk.train(**settings, output_dir=folder)
    return json.loads((folder / "plan.json").read_text())["begun"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return keys(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same without an evaluation, which is half of the work."""
    return keys(tmp_path_factory.mktemp("trained"), eval_size=0)


def redone(first, now) -> list[str]:
    return [stage for stage in ORDER if first.get(stage) != now.get(stage)]


def other_column():
    return [row | {"n": row["n"] + (row["n"] == 1)} for row in ROWS]


BY_CONTENT = [
    ({"model": language_model(1)}, "round-1/rollouts"),
    ({"model": language_model().bfloat16()}, "round-1/rollouts"),
    ({"prompts": ROWS[1:]}, "round-1/prompts"),
    ({"prompts": other_column()}, "round-1/prompts"),
    ({"eval_prompts": HELD_OUT[1:]}, "evaluation/rollouts"),
    ({"train_prompts": 7}, "round-1/prompts"),
    ({"reward": [vowels, "repetition"]}, "round-1/scores"),
    ({"reward_weights": [1.0, 0.5]}, "round-1/scores"),
    ({"second_reward": vowels}, "round-1/second_scores"),
    ({"knobs": ["temperature:0.5,1.5", "top_p:0.5,1"]}, "round-1/rollouts"),
    ({"order": ["top_p", "temperature"]}, "round-1/rollouts"),
    ({"strategies": [{"temperature": 0.5, "top_p": 1.0}, {"temperature": 1.0, "top_p": 0.5}]}, "round-1/rollouts"),
    ({"level": "every:2"}, "round-1/rollouts"),
    ({"rollouts": 5}, "round-1/rollouts"),
    ({"first_round": "balanced"}, "round-1/rollouts"),
    ({"eval_size": 4}, "evaluation/rollouts"),
    ({"eval_seeds": 2}, "evaluation/rollouts"),
    ({"tune_size": 3}, "tuning/rollouts"),
    ({"pick": "sample"}, "tuning/rollouts"),
    ({"draws": 5}, "tuning/rollouts"),
]


def test_every_setting_that_is_keyed_by_content_is_perturbed_here():
    elsewhere = {"dtype", "gguf_file", "preferences", "engine"}  # of models: test_subject.py; engines: tests/engines/openai
    expected = {name for name, one in fields().items() if one.enters.by_content} - elsewhere
    assert {name for changes, _ in BY_CONTENT for name in changes} == expected


@pytest.mark.parametrize(("changes", "stage"), [
    *BY_CONTENT,
    ({"max_new_tokens": 7}, "round-1/rollouts"),
    ({"seed": 1}, "round-1/rollouts"),
    ({"pair_rule": "top_bottom"}, "round-1/examples"),
    ({"floor": -20}, "round-1/features"),
    ({"features": ["entropy", "margin"]}, "round-1/features"),
    ({"beta": 0.2}, "round-1/heads"),
    ({"steps": 3}, "round-1/heads"),
])  # fmt: skip
def test_the_first_stage_that_depends_on_an_input_is_made_again(first, trained, tmp_path, changes, stage):
    is_judged = not stage.startswith("round-1")
    again = redone(first if is_judged else trained, keys(tmp_path, **changes if is_judged else {"eval_size": 0, **changes}))
    assert again and again[0] == stage


def test_given_pairs_are_keyed_by_content(tmp_path):
    rows = [{"prompt": f"Story: A cat {n}", "chosen": " The end.", "rejected": " And so on."} for n in range(9)]
    others = [row | {"chosen": " The cat."} for row in rows]
    given = {"reward": "repetition", "second_reward": None, "prompts": None, "eval_prompts": None, "eval_size": 1}
    one, two = (keys(tmp_path / str(n), **given, preferences=some) for n, some in enumerate((rows, others)))
    assert "round-1/rollouts" in redone(one, two) and "round-1/features" in redone(one, two)


HARMLESS = {"trust_remote_code": True, "read_batch": 3, "feature_ram": 1e-9, "checkpoint_every": 1, "trackers": ["tensorboard"],
            "account": True}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, one in fields().items() if not one.enters.stages and not one.enters.by_content])
def test_a_harmless_setting_redoes_nothing(first, tmp_path, name):
    """Where the model runs is named harmless too: a run goes on elsewhere."""
    if name == "read_batch":  # the last bits of features, and so of the head, depend on it, but no key up to the head does
        changed = keys(tmp_path / "new", read_batch=HARMLESS[name])
        assert [stage for stage in redone(first, changed) if stage.startswith("round-1")] == []
        went_on = keys(tmp_path / "new", read_batch=2, resume=True)
        assert redone(changed, went_on) == []
    elif name in HARMLESS:
        assert redone(first, keys(tmp_path, **{name: HARMLESS[name]})) == []
    else:
        assert name in ("device", "device_map", "tp_plan", "output_dir")
        assert make_config({name: "cpu"}).digest("rollouts") == make_config({}).digest("rollouts")
