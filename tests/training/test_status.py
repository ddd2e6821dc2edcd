"""`status`: what a run's files tell about it, before, while, and after; and what is left."""

import json
import re
import shutil
import threading

import pytest
from click.testing import CliRunner

import latentknobs as lk
import latentknobs.commands.status
from latentknobs import commands
from latentknobs.cli import cli
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.errors import RunError
from latentknobs.training.rundir import RunDir
from latentknobs.training.status import read_status

SETTINGS = {
    "knobs": ["temperature:0,1"], "prompts": "testbed:stories", "train_prompts": 8, "rollouts": 2, "eval_size": 3,
    "eval_seeds": 1, "tune_size": 2, "max_new_tokens": 6, "batch_size": 4, "shard_size": 4, "steps": 5, "hidden": 8,
    "pairs_per_step": 4,
}  # fmt: skip


class Stop(BaseException):
    """Not an error of the reward: the run ends here, like an interruption."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return lk.train(**SETTINGS, output_dir=tmp_path_factory.mktemp("run")).path


def by_name(path):
    return {stage.name: stage for stage in read_status(path).stages}


def test_a_finished_run_says_so_with_real_sizes_and_nothing_left(finished):
    status = read_status(finished)
    assert status.finished and not status.running and status.left == 0
    stages = by_name(finished)
    assert stages["round-1/rollouts"].items == stages["round-1/rollouts"].done == 16
    assert stages["evaluation/rollouts"].done == 3 * 6  # head, two constants, greedy, mixture, entropy only
    assert stages["round-1/heads"].done == 2 * SETTINGS["steps"]
    files = (finished / "round-1" / "rollouts").iterdir()
    assert stages["round-1/rollouts"].size == sum(file.stat().st_size for file in files)
    assert all(stage.seconds >= 0 for stage in stages.values())


def test_an_interrupted_run_shows_what_is_done_and_estimates_the_rest(tmp_path):
    asked = []

    def stops(prompts, completions, **columns):
        asked.append(len(prompts))
        if len(asked) > 2:
            raise Stop
        return [float(len(text)) for text in completions]

    with pytest.raises(Stop):
        lk.train(**SETTINGS, reward=stops, output_dir=tmp_path)
    status, stages = read_status(tmp_path), by_name(tmp_path)
    assert not status.finished and not status.running
    assert stages["round-1/rollouts"].done == 16
    assert stages["round-1/scores"].done == 8 and stages["round-1/scores"].items == 16
    assert stages["round-1/scores"].left == pytest.approx(stages["round-1/scores"].seconds, rel=0.2, abs=0.01)
    assert stages["round-1/heads"].left is None and status.left is None  # nothing of its kind was timed
    assert stages["evaluation/rollouts"].left > 0  # rollouts were
    assert (stages["tuning/rollouts"].items, stages["evaluation/rollouts"].items) == (
        2 * 2 + 2,
        3 * 6 + 2 * 3,
    )  # at most: with the head, with the head before the choice and a constant beyond the options


def test_a_run_that_is_killed_inside_a_file_shows_its_responses_and_samples_only_the_rest(tmp_path, monkeypatch):
    whole = SETTINGS | {"shard_size": 512}  # one file, of four batches
    expected = lk.train(**whole, output_dir=tmp_path / "whole").path / "round-1" / "rollouts"
    sample, calls = TransformersEngine.sample, []

    def killed(self, prompts, policy, **settings):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise Stop
        return sample(self, prompts, policy, **settings)

    monkeypatch.setattr(TransformersEngine, "sample", killed)
    with pytest.raises(Stop):
        lk.train(**whole, output_dir=tmp_path / "run")
    assert by_name(tmp_path / "run")["round-1/rollouts"].done == 8 and not list((tmp_path / "run/round-1/rollouts").iterdir())
    lk.train(**whole, output_dir=tmp_path / "run")
    assert calls[:5] == [4] * 5 and calls[5] < 4  # two batches, the killed one, the two that were left, and then the tuning
    found = tmp_path / "run" / "round-1" / "rollouts" / "00000.jsonl"
    assert found.read_text() == (expected / "00000.jsonl").read_text()
    assert not list((tmp_path / "run" / "unfinished").iterdir())


def test_a_file_that_is_gone_or_cut_counts_as_open(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "round-1" / "rollouts" / "00000.jsonl").unlink()
    cut = folder / "round-1" / "scores" / "00001.jsonl"
    cut.write_text(cut.read_text()[:-3])
    stages = by_name(folder)
    assert (stages["round-1/rollouts"].done, stages["round-1/scores"].done) == (12, 12)
    assert not read_status(folder).finished


def test_other_settings_make_what_an_earlier_run_had_begun_count_as_open(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")

    def stops(prompts, completions, **columns):
        raise Stop

    with pytest.raises(Stop):
        lk.train(**(SETTINGS | {"seed": 3}), reward=stops, output_dir=folder)
    assert by_name(folder)["round-1/features"].done == 0


def test_asking_a_running_run_needs_no_lock_and_changes_nothing(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    with RunDir(folder):
        assert read_status(folder).running
    assert not read_status(folder).running
    assert {path: path.read_bytes() for path in before} == before


SMALL_PLAN = {"stages": {"a": 1}, "processes": 1, "settings": ""}
BAD_PLANS = [{"stages": 3}, SMALL_PLAN | {"stages": {"a": "b"}}, SMALL_PLAN | {"processes": 0}, SMALL_PLAN | {"begun": {"b": {}}}]


@pytest.mark.parametrize("text", [None, "{", "[" * 100_000, *map(json.dumps, BAD_PLANS)])
def test_a_folder_without_a_run_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    why = r"(There is no run in|plan.json' is damaged|plan.json' cannot be read)"
    with pytest.raises(RunError, match=rf"{why}.*Give the output_dir") as error:
        read_status(tmp_path)
    assert len(str(error.value)) < 500


ENTRY = {"stage": "s", "file": "a", "key": "k", "sha256": "0", "size": 1, "items": 1, "seconds": 1.0, "ended": 1.0}
BAD_ENTRIES = [ENTRY | {"file": "a\0b"}, ENTRY | {"size": -1}, ENTRY | {"seconds": float("nan")}]


@pytest.mark.parametrize("text", [*map(json.dumps, BAD_ENTRIES), "[" * 100_000, "\xff"])
def test_a_manifest_of_another_kind_is_refused_in_a_short_paragraph(finished, tmp_path, text):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "manifest.jsonl").write_bytes(text.encode("latin-1") + b"\n")
    with pytest.raises(RunError) as error:
        read_status(folder)
    assert len(str(error.value)) < 500


NO_ROWS = ["[1]", '{"round": "x"}', '{"round": 1, "head": [1]}', "[" * 100_000, "x" * 3_000_000, "\xff\xfe"]


@pytest.mark.parametrize("text", NO_ROWS)
def test_metrics_of_another_kind_are_passed_over(finished, tmp_path, text):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "round-1" / "heads" / "main.safetensors").unlink()
    (folder / "metrics.jsonl").write_bytes(text.encode("latin-1"))
    assert not read_status(folder).finished
    with RunDir(folder) as run:
        run.forget_metrics(lambda row: row["round"] > 1)
    assert (folder / "metrics.jsonl").stat().st_size < 100


def test_the_command_shows_a_table_and_a_sentence(finished):
    shown = CliRunner().invoke(cli, ["status", str(finished)])
    assert shown.exit_code == 0
    assert re.search(r"round-1/rollouts\s+│\s+16\s+│\s+16", shown.output)
    assert "Finished." in shown.output
    plan = json.loads((finished / "plan.json").read_text())
    assert all(stage in shown.output for stage in plan["stages"])


def test_watching_follows_a_run_until_it_stops(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "copy")
    last = folder / "evaluation" / "summary.json"
    content = last.read_bytes()
    last.unlink()
    started, looked = threading.Event(), threading.Event()
    monkeypatch.setattr("latentknobs.commands.status.SECONDS", 0.02)
    later = commands.status._later
    monkeypatch.setattr("latentknobs.commands.status._later", lambda run: (looked.set(), later(run))[1])

    def finish() -> None:
        with RunDir(folder):
            started.set()
            looked.wait(60)
            last.write_bytes(content)

    worker = threading.Thread(target=finish)
    worker.start()
    started.wait(60)
    shown = CliRunner().invoke(cli, ["status", str(folder), "--watch"])
    worker.join()
    assert shown.exit_code == 0
    lines = [line for line in shown.output.splitlines() if line.strip()]
    assert any(line.startswith("Running.") for line in lines) and lines[-1] == "Finished."
