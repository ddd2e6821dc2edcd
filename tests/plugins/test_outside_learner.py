"""The example learner for real: installed into a folder of its own, found by its entry point, checked, and trained with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "latentknobs-rwr"

USE = """
import json, sys, torch, pytest, latentknobs as lk
torch.set_num_threads(1)
from latentknobs import entry_points, testing
assert "latentknobs_rwr" not in sys.modules and "rwr" in entry_points.names("learner"), "listing must import nothing"
testing.check_learner("rwr")
assert pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1]]) == 0

def words(prompts, completions, **columns):
    return [float(len(text.split())) for text in completions]

small = dict(knobs=["temperature:0,0.5,1.5"], reward=words, train_prompts=24, rollouts=6, steps=60, hidden=8, max_new_tokens=8,
             eval_size=6, tune_size=6, eval_seeds=1, learning_rate=0.01, validation=0.25)
run = lk.train(learner="rwr:temperature=0.3", output_dir="run", **small)
rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
main = [row for row in rows if row["head"] == "main"]
checked = [row for row in main if "validation_loss" in row]
assert len(main) == 60 and main[-1]["loss"] != main[0]["loss"] and all("validation_log_likelihood" in row for row in checked)
examples = [json.loads(line) for line in (run.path / "round-1" / "examples.jsonl").read_text().splitlines()]
assert len(examples) == 24 * 6 and abs(sum(e["weight"] for e in examples) - 24 * 6) < 1e-6
assert "learned head" in run.report.rewards and run.report.tuned in run.report.tuning
adapter = lk.KnobAdapter.from_pretrained(run.path / "adapter")
assert adapter.training["learner"] == "rwr" and adapter.training["temperature"] == "0.3"

stamps = {path: path.stat().st_mtime_ns for path in (run.path / "round-1" / "rollouts").iterdir()}
again = lk.train(learner="lpo", output_dir="run", rounds=1, **small)  # another learner on the same rollouts
assert {path: path.stat().st_mtime_ns for path in (run.path / "round-1" / "rollouts").iterdir()} == stamps
REFUSED = (({"beta": 0.3}, "It is a setting of the learner 'lpo'"), ({"preferences": "x.jsonl"}, "not from preferences"))
for settings, words in REFUSED:
    try:
        lk.train(learner="rwr", output_dir="other", **small, **settings)
    except lk.errors.ConfigError as error:
        assert words in str(error) and "'rwr'" in str(error), error
    else:
        raise AssertionError(settings)
try:
    lk.train(learner="rwr", output_dir="flat", **small | {"reward": lambda completions, **_: [1.0] * len(completions)})
except lk.errors.NoExamplesError as error:
    assert "rewards are 1." in str(error), error
print("trained", adapter.space.names)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and its entry point."""
    folder = tmp_path_factory.mktemp("outside")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
               "--disable-pip-version-check", "--target", str(folder / "site"), str(EXAMPLE)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_third_party_learner_is_found_checked_and_trained_with_to_the_end(installed: Path) -> None:
    variables = os.environ | {"PYTHONPATH": str(installed / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE, str(EXAMPLE / "tests")]
    done = subprocess.run(command, cwd=installed, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "trained ('temperature',)"
