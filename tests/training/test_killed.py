"""A run that is killed (SIGKILL) at 32 moments across all of its stages (at 54 with the slow ones) ends bit for bit as if nothing
had happened."""

import json
import random
from pathlib import Path

import pytest
from forked import finished
from killed import main

ROUND = ("prompts", "rollouts", "scores", "examples", "features", "checkpoint-main", "heads")
PLACES = [
    "config.yaml", *(f"round-{number}/{part}" for number in (1, 2) for part in ROUND), "tuning/rollouts", "tuning/scores",
    "evaluation/rollouts", "evaluation/scores", "evaluation/summary", "adapter", "report.html",
]  # fmt: skip
ANYWHERE = 10  # kills at a time of no meaning
# what a run is judged by; the rest (manifest, plan, times in them) tells how it went
RESULTS = ("adapter", "report.html", "diagnostics.json", "evaluation", "tuning", "metrics.jsonl", "round-1", "round-2")


def launch(folder: Path, moment: str, log: Path) -> int:
    """The exit code of a run."""
    return finished(main, folder, moment, log)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and the changes it made to its folder."""
    folder = tmp_path_factory.mktemp("whole")
    assert launch(folder / "run", "never", folder / "log.json") == 0
    return folder / "run", json.loads((folder / "log.json").read_text())


def results(folder: Path) -> dict[str, bytes]:
    """The content of every file that is a result."""
    found = [path for name in RESULTS for path in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))]
    files = [path for path in found if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"RUN") for path in files}


def resumed_to_the_end(folder: Path, wanted: dict[str, bytes]) -> None:
    assert launch(folder, "never", folder.parent / "log.json") == 0
    found = results(folder)
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.parametrize("change", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_in_every_stage_one_after_the_other_the_run_ends_the_same(whole, tmp_path, change):
    for place in PLACES:
        nth = 1 if place == "round-2/heads" else change  # one file, whose opening happens outside of Python
        assert launch(tmp_path / "run", f"at:{place}:{nth}", tmp_path / "log.json") == -9, place
    resumed_to_the_end(tmp_path / "run", results(whole[0]))


def test_killed_at_random_times_the_run_ends_the_same(whole, tmp_path):
    seconds, rng, killed = whole[1]["seconds"], random.Random(0), 0
    for chain in range(100):
        code = -9
        while code == -9 and killed < ANYWHERE:
            code = launch(tmp_path / f"{chain}" / "run", f"after:{rng.random() * seconds / 2:.3f}", tmp_path / "log.json")
            assert code in (0, -9)
            killed += code == -9
        resumed_to_the_end(tmp_path / f"{chain}" / "run", results(whole[0]))
        if killed == ANYWHERE:
            break
    assert killed == ANYWHERE
