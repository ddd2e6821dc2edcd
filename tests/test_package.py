"""The package as people install it: one number for its version, its types, and a wheel that works where nothing else is."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import latentknobs

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_version_is_one_number_in_one_place(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert version("latentknobs") == latentknobs.__version__
    assert wheel.name.startswith(f"latentknobs-{latentknobs.__version__}-")
    assert (
        f"## {latentknobs.__version__}" in (ROOT / "CHANGELOG.md").read_text()
        or "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_the_wheel_holds_the_package_its_types_its_model_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "latentknobs", "latentknobs_temperature", "latentknobs_truncation", "latentknobs_contrib",
    }  # fmt: skip
    assert "latentknobs/py.typed" in names and any(name.endswith("model.safetensors") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".ipynb", ".pt", ".pkl"))]


@pytest.mark.slow
def test_the_wheel_trains_in_an_environment_made_from_nothing(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", "torch==2.13.0", env=environment)
    run(python, "-m", "pip", "install", "--quiet", "--no-compile", wheel, env=environment)
    command = tmp_path / "env/bin/latentknobs"
    assert run(command, "--version", env=environment, cwd=tmp_path).split()[-1] == latentknobs.__version__
    small = [
        "--train-prompts=8",
        "--rollouts=2",
        "--max-new-tokens=8",
        "--steps=4",
        "--eval-size=4",
        "--eval-seeds=1",
        "--tune-size=4",
    ]
    run(command, "train", "--knobs=temperature:0,1", "--output-dir=run", *small, env=environment, cwd=tmp_path)
    assert (tmp_path / "run/adapter/knob_head.safetensors").exists() and (tmp_path / "run/report.html").exists()


@pytest.mark.slow
def test_what_is_uploaded_is_clean(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT)
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *tmp_path.iterdir())
    assert checked.count("PASSED") == 2
