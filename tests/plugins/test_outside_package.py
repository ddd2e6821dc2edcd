"""The example package for real: installed, listed, checked, trained with, uninstalled. It adds one of each of the five kinds.

Once into a folder of its own, from which a process takes it; and once, slowly, as a wheel beside the project's wheel in a fresh
environment, which borrows the libraries (torch, transformers, ...) of the one that runs the tests.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from forked import finished

import latentknobs as lk

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "latentknobs-example"
NAMES = {"knob": "top_a", "policy": "warm_start", "learner": "rwr", "engine": "uncached", "reward": "brevity"}
SMALL = {
    "knobs": ["temperature:0,0.5,1.5", "top_a:0,0.3"], "reward": "brevity:words=3", "train_prompts": 12, "rollouts": 4,
    "steps": 30, "hidden": 8, "max_new_tokens": 6, "eval_size": 3, "tune_size": 3, "eval_seeds": 1, "learning_rate": 0.01,
    "validation": 0.25,
}  # fmt: skip


def use(folder: Path) -> None:
    """What a user does with the installed package, in a process of its own."""
    from latentknobs import entry_points, testing
    from latentknobs.knobs import registry

    os.chdir(folder)
    sys.path.insert(0, str(folder / "site"))
    (source,) = [source for source in registry.sources() if source.name == "top_a"]
    assert str(source) == 'entry point "top_a = latentknobs_example.top_a:TopA" of latentknobs-example 0.1.0', source
    assert all(name in entry_points.names(kind) for kind, name in NAMES.items() if kind != "knob")
    assert "latentknobs_example" not in sys.modules, "listing must import nothing"
    for kind, name in NAMES.items():
        getattr(testing, f"check_{kind}")(name)
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-c", os.devnull, str(EXAMPLE / "tests"), "-k", "not TestUncached"]) == 0
    run = lk.train(learner="rwr:temperature=0.3", engine="uncached", output_dir="run", **SMALL)  # type: ignore[arg-type]
    assert run.report is not None and "learned head" in run.report.rewards
    stamps = {path: path.stat().st_mtime_ns for path in (run.path / "round-1" / "rollouts").iterdir()}
    lk.train(learner="lpo", engine="uncached", output_dir="run", **SMALL)  # type: ignore[arg-type]
    assert {path: path.stat().st_mtime_ns for path in (run.path / "round-1" / "rollouts").iterdir()} == stamps
    refused({"beta": 0.3}, "It is a setting of the learner 'end_to_end' and 'lpo'")
    refused({"preferences": "x.jsonl"}, "not from preferences")
    refused({"reward": "brevity:words=1000"}, "rewards are 1")


def refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(lk.errors.LatentKnobsError, match=words):
        lk.train(learner="rwr", output_dir="other", **SMALL | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and its entry points in `site`."""
    folder = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile",
         "--disable-pip-version-check", "--target", folder / "site", EXAMPLE, cwd=folder)  # fmt: skip
    return folder


def test_one_of_each_kind_is_listed_checked_and_trained_with(installed: Path) -> None:
    assert finished(use, installed, log=installed / "log") == 0, (installed / "log").read_text()
    rows = [json.loads(line) for line in (installed / "run" / "metrics.jsonl").read_text().splitlines()]
    main = [row for row in rows if row["head"] == "main"]
    assert len(main) == SMALL["steps"] and main[-1]["loss"] != main[0]["loss"]
    notes = json.loads((installed / "run" / "adapter" / "knob_config.json").read_text())["training"]
    assert notes["learner"] == "lpo"


USE = """
import sys, torch, latentknobs as lk
torch.set_num_threads(1)
from latentknobs import testbed, testing
assert lk.__file__.startswith(sys.prefix), lk.__file__
run = lk.train(
    knobs=["temperature:0.5,1", "top_a:0,0.3"], reward="brevity:words=2", output_dir="run", train_prompts=6, rollouts=3, steps=3,
    hidden=8, max_new_tokens=6, eval_size=0,
)
model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
adapter = lk.KnobAdapter.from_pretrained(run.path / "adapter")
ids = tokenizer("Once", return_tensors="pt")
with adapter.attach(model):
    out = model.generate(**ids, max_new_tokens=4)
assert out.shape[1] > ids["input_ids"].shape[1]
print("used", adapter.space.names)
"""

GONE = """
import latentknobs as lk
try:
    lk.KnobAdapter.from_pretrained("run/adapter")
except lk.errors.AdapterError as error:
    print(error)
assert lk.KnobSpace.of("temperature").K == 6
"""


def call(*command: object, cwd: Path) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `venv`, into which both wheels are installed."""
    folder = tmp_path_factory.mktemp("outside")
    for project in (ROOT, EXAMPLE):
        call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheels", cwd=project)
    wheels = sorted((folder / "wheels").glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["latentknobs", "latentknobs_example"]
    call(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    pip(folder, "install", "--no-deps", "--no-index", *wheels)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def pip(folder: Path, *arguments: object) -> str:
    python = folder / "venv/bin/python"
    return call(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def used(environment: Path) -> str:
    """What the package printed while it was listed, checked, trained with and generated with."""
    return call(environment / "venv/bin/python", "-c", USE, cwd=environment)


@pytest.mark.slow
def test_a_third_party_package_is_listed_checked_trained_and_generated_with(used: str) -> None:
    assert used.splitlines()[-1] == "used ('temperature', 'top_a')"


@pytest.mark.slow
def test_its_adapter_says_what_to_install_once_it_is_uninstalled(environment: Path, used: str) -> None:
    pip(environment, "uninstall", "-y", "latentknobs-example")
    told = " ".join(call(environment / "venv/bin/python", "-c", GONE, cwd=environment).split())
    assert told == (
        "The adapter 'run/adapter' cannot be used here: There is no knob 'top_a' here; it was saved from "
        "latentknobs-example 0.1.0. To load it, install latentknobs-example 0.1.0."
    )
