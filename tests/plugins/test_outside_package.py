"""The example package for real: built, installed beside the project's wheel into a fresh environment, used, uninstalled.

The environment borrows the libraries (torch, transformers, ...) of the one that runs the tests; latentknobs itself comes
from the wheel.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "latentknobs-top-a"

USE = """
import sys, torch, pytest, latentknobs as lk
torch.set_num_threads(1)
from latentknobs import testbed, testing
from latentknobs.knobs import registry
assert lk.__file__.startswith(sys.prefix), lk.__file__
(source,) = [source for source in registry.sources() if source.name == "top_a"]
assert str(source) == 'entry point "top_a = latentknobs_top_a:TopA" of latentknobs-top-a 0.1.0', source
assert "latentknobs_top_a" not in sys.modules, "listing must import nothing"
testing.check_knob("top_a")
assert pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1]]) == 0
run = lk.train(
    knobs=["temperature:0.5,1", "top_a:0,0.3"], reward=lambda prompts, completions, **_: [float(len(c)) for c in completions],
    output_dir="run", train_prompts=6, rollouts=3, steps=3, hidden=8, max_new_tokens=6, eval_size=0,
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
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["latentknobs", "latentknobs_top_a"]
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
    return call(environment / "venv/bin/python", "-c", USE, EXAMPLE / "tests", cwd=environment)


@pytest.mark.slow
def test_a_third_party_package_is_listed_checked_trained_and_generated_with(used: str) -> None:
    assert used.splitlines()[-1] == "used ('temperature', 'top_a')"


@pytest.mark.slow
def test_its_adapter_says_what_to_install_once_it_is_uninstalled(environment: Path, used: str) -> None:
    pip(environment, "uninstall", "-y", "latentknobs-top-a")
    told = " ".join(call(environment / "venv/bin/python", "-c", GONE, cwd=environment).split())
    assert told == (
        "The adapter 'run/adapter' cannot be used here: There is no knob 'top_a' here; it was saved from "
        "latentknobs-top-a 0.1.0. To load it, install latentknobs-top-a 0.1.0."
    )
