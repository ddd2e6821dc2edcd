"""headroom() on the packaged testbed, small, and a training that goes on from it."""

import json
from types import SimpleNamespace

import pytest

import latentknobs as lk
from latentknobs.config import make_config
from latentknobs.errors import ConfigError
from latentknobs.training import headroom as module
from latentknobs.training.headroom import BRANCHED, BY_PROMPT, BY_TASK, SAMPLES

SMALL = {"train_prompts": 10, "rollouts": 4, "max_new_tokens": 6, "knobs": ["temperature:0,1"]}


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


length.version = "1"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    few = {"cold at the start": module.RULES["cold at the start"][:2], "no such rule here": ["kl_guided:half_life=1"]}
    patch.setattr(module, "RULES", few)
    yield lk.headroom(6, samples=2, reward=length, output_dir=tmp_path_factory.mktemp("headroom"), **SMALL)
    patch.undo()


def test_it_says_what_it_found_and_leaves_samples(found):
    assert set(found.constants) >= {"temperature 0", "temperature 1"} and found.best in found.constants
    assert {BY_TASK, BY_PROMPT, BRANCHED, "cold at the start"} <= set(found.gains) == set(found.p)
    assert found.rules["cold at the start"].startswith("opening:")
    saved = json.loads((found.path / "headroom.json").read_text())
    assert saved["verdict"] == found.verdict and saved["prompts"] == 6
    assert "**temperature 0**" in (found.path / SAMPLES).read_text()


def test_a_training_after_it_copies_its_rollouts(found, tmp_path):
    again = {"config": found.path / "config.yaml", "reward": length, "eval_size": 0, "steps": 2, "hidden": 8}
    run = lk.train(**again, output_dir=tmp_path / "after", after=found.path)
    plain = lk.train(**again, output_dir=tmp_path / "plain")
    rows = [json.loads(line) for line in (run.path / "manifest.jsonl").read_text().splitlines()]
    first, second = (row for row in rows if row["stage"] == "mixture/rollouts" or row["stage"] == "round-1/rollouts")
    assert (first["seconds"], first["items"]) == (0, 24) and second["items"] == 16
    mixture = (found.path / "mixture/rollouts/00000.jsonl").read_bytes()
    assert (run.path / "round-1/rollouts/00000.jsonl").read_bytes() == mixture
    assert {row["prompt"] for row in map(json.loads, mixture.splitlines())} == set(range(6))
    both = [json.loads(line) for path in sorted((run.path / "round-1/rollouts").iterdir()) for line in path.open()]
    whole = [json.loads(line) for line in (plain.path / "round-1/rollouts/00000.jsonl").open()]
    assert sorted(row["prompt"] for row in both) == sorted(row["prompt"] for row in whole)


def test_the_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ConfigError, match="holds a run, whose settings would be lost"):
        lk.headroom(6, output_dir=tmp_path, **SMALL)


def test_a_level_that_the_learner_refuses_is_not_recommended():
    config, space = make_config({"learner": "end_to_end", "statistics": True}), lk.KnobSpace.of("temperature", "top_p")
    study = module._Study(None, config, space, SimpleNamespace(tokenizer=None), 6, 2)
    found, why = study._at("sequence")
    assert found.level == "token" and "The learner cannot choose at level sequence: statistics=True reads" in why


def test_too_little_to_choose_and_to_judge_is_refused():
    with pytest.raises(ConfigError, match="takes 4 prompts and 2 samples"):
        lk.headroom(3)
