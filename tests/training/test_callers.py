"""What belongs to the caller of train() and evaluate() stays what it was: the model, its modes, random states, columns."""

import json
import random
import threading

import numpy as np
import pytest
import torch
from test_train import KNOBS, SMALL, length

import latentknobs as lk
from latentknobs import testbed


def states():
    arrays = [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()]
    return random.getstate(), arrays, torch.get_rng_state().tolist()


def drawing(prompts, completions, **columns):
    random.random(), np.random.rand(), torch.rand(1)  # as a caller's own code may
    return length(prompts, completions)


def test_the_callers_random_state_and_model_are_as_they_were(tmp_path):
    model = testbed.load_model().train().requires_grad_(True)
    model.model.layers[0].eval()
    model.lm_head.requires_grad_(False)
    before = states(), [part.training for part in model.modules()], [weight.requires_grad for weight in model.parameters()]
    lk.train(
        knobs=KNOBS, reward=drawing, model=model, tokenizer=testbed.load_tokenizer(), output_dir=tmp_path, **SMALL | {"steps": 2},
    )  # fmt: skip
    assert before == (
        states(), [part.training for part in model.modules()], [weight.requires_grad for weight in model.parameters()]
    )  # fmt: skip


def test_an_evaluation_neither_drops_out_nor_leaves_the_callers_model_frozen(tmp_path):
    settings = {"reward": length, "seeds": 1, "eval_size": 3, "tune_size": 3, "max_new_tokens": 6, "device": "cpu"}
    adapter = lk.train(knobs=KNOBS, reward=length, output_dir=tmp_path, **SMALL | {"steps": 2, "eval_size": 0}).adapter
    plain = lk.evaluate(adapter, **settings)
    model = testbed.load_model().train().requires_grad_(True)
    model.model.layers[0].eval()
    for part in model.modules():
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.9
    before = [part.training for part in model.modules()]
    report = lk.evaluate(adapter, model=model, tokenizer=testbed.load_tokenizer(), **settings)
    np.testing.assert_equal(report.rewards, plain.rewards)
    assert before == [part.training for part in model.modules()] and all(weight.requires_grad for weight in model.parameters())


def test_columns_that_can_be_neither_copied_nor_written_reach_the_reward(tmp_path):
    inside = {}
    inside["itself"] = inside
    held = [threading.Lock(), inside, {(1, 2): 3}]
    rows = [{"prompt": f"{n} times", "held": held} for n in range(12)]

    def score(completions, held, **columns):
        assert all(lock.acquire(False) and lock.release() is None and loop["itself"] is loop for lock, loop, _ in held)
        return [float(len(text)) for text in completions]

    lk.train(knobs=KNOBS, prompts=rows, reward=score, output_dir=tmp_path, **SMALL | {"steps": 2, "eval_size": 0})
    line = json.loads((tmp_path / "round-1" / "prompts.jsonl").read_text().splitlines()[0])
    assert "lock" in line["columns"]["held"] and line["text"].endswith("times")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_the_caller_switched_gradients_off_and_leaves_that_as_it_was(tmp_path, mode):
    settings = SMALL | {"eval_size": 0}
    plain = lk.train(knobs=KNOBS, reward=length, output_dir=tmp_path / "a", **settings)
    state = torch.random.get_rng_state()
    with mode():
        run = lk.train(knobs=KNOBS, reward=length, output_dir=tmp_path / "b", **settings)
        assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert torch.is_grad_enabled() and torch.equal(torch.random.get_rng_state(), state)
    file = "adapter/knob_head.safetensors"
    assert (run.path / file).read_bytes() == (plain.path / file).read_bytes()


def test_an_evaluation_leaves_the_callers_random_state(tmp_path):
    adapter = lk.train(knobs=KNOBS, reward=length, output_dir=tmp_path, **SMALL | {"steps": 2, "eval_size": 0}).adapter
    before = states()
    lk.evaluate(adapter, reward=drawing, seeds=1, eval_size=3, tune_size=3, max_new_tokens=6, device="cpu")
    assert states() == before
