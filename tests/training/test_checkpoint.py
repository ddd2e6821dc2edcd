"""A fit that is stopped after any step goes on bit by bit the same; a damaged or foreign checkpoint is never used."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from bandit import fit_pairs, new_head, play
from forked import finished
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from latentknobs.config import make_config
from latentknobs.errors import RunError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.training.checkpoint import HEADER, Checkpoint, remove_checkpoint
from latentknobs.training.processes import Processes

CACHE, PAIRS = play(parse_level("every:3"), 40)
STEPS, EVERY = 23, 4
CONFIG = {
    "steps": STEPS, "checkpoint_every": EVERY, "pairs_per_step": 8, "learning_rate": 0.05, "beta": 0.5, "warmup": 3,
    "schedule": "cosine", "clip": 0.1, "entropy_bonus": 0.01, "kl": 0.01,
}  # fmt: skip


class Killed(Exception):
    pass


def fit(folder: Path, rows: list[dict[str, Any]], die_after: int = STEPS + 1, said: Any = None, **change: Any) -> OptionHead:
    """One process: it keeps the rows up to the checkpoint, goes on, and dies while it logs a step."""
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", "key", said or (lambda text: None))
    rows[:] = [row for row in rows if row["step"] <= checkpoint.step()]

    def log(row: dict[str, Any]) -> None:
        rows.append(row)
        if row["step"] == die_after:
            raise Killed

    config = make_config(CONFIG | change)
    return fit_pairs(
        new_head(CACHE), CACHE, PAIRS[8:], PAIRS[:8], config, reference=new_head(CACHE, seed=1), log=log, checkpoint=checkpoint
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    return fit(tmp_path_factory.mktemp("whole"), rows).state_dict(), rows


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("k", range(1, STEPS + 1))
def test_a_fit_killed_after_any_step_ends_with_the_same_bits_and_each_step_logged_once(
    k: int, tmp_path: Path, whole: tuple[dict[str, Tensor], list[dict[str, Any]]]
) -> None:
    rows: list[dict[str, Any]] = []
    with pytest.raises(Killed):
        fit(tmp_path, rows, die_after=k)
    again: list[int] = []
    resumed = fit(tmp_path, rows, said=again.append)
    assert same_bits(resumed.state_dict(), whole[0]) and rows == whole[1] and not again


@settings(max_examples=8)
@given(st.lists(st.integers(1, STEPS), min_size=2, max_size=5), st.integers(1, STEPS))
def test_so_does_one_that_is_killed_again_and_again(tmp_path_factory: Any, whole: Any, deaths: list[int], every: int) -> None:
    folder, rows = tmp_path_factory.mktemp("run"), []
    for k in deaths:
        try:
            fit(folder, rows, die_after=k, checkpoint_every=every)
        except Killed:
            continue
    assert same_bits(fit(folder, rows, checkpoint_every=every).state_dict(), whole[0]) and rows == whole[1]


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(file: Any, data: bytes) -> None:
    with file.open("wb") as out:
        out.write(data[: len(data) // 2])
    die()


def dies_around_its_second_save(folder: Path, moment: str) -> None:
    """Runs in a process of its own."""
    real, saves = Checkpoint.save, []

    def save(self: Checkpoint, step: int, tensors: Any, facts: Any) -> None:
        saves.append(step)
        if len(saves) == 2 and moment == "nothing on the disk yet":
            die()
        if len(saves) == 2 and moment == "half of it written":
            half_written(self.path.with_name(self.path.name + ".partial"), self.path.read_bytes())
        if len(saves) == 2 and moment == "not yet in its place":
            Path.replace = die  # type: ignore[assignment, method-assign]
        real(self, step, tensors, facts)
        if len(saves) == 2:
            die()

    Checkpoint.save = save  # type: ignore[method-assign]
    fit(folder, [])


@pytest.mark.parametrize("moment", ["nothing on the disk yet", "half of it written", "not yet in its place", "in its place"])
def test_sigkill_around_a_save_loses_steps_but_never_bits(tmp_path: Path, whole: Any, moment: str) -> None:
    """A real process, killed around its second save; then another one, which finds whatever was left."""
    assert finished(dies_around_its_second_save, tmp_path, moment) == -signal.SIGKILL
    done = 2 * EVERY if moment == "in its place" else EVERY
    assert Checkpoint(tmp_path / "checkpoint.safetensors", "key").step() == done
    rows = [row for row in whole[1] if row["step"] <= done]
    said: list[str] = []
    assert same_bits(fit(tmp_path, rows, said=said.append).state_dict(), whole[0]) and rows == whole[1] and not said
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_without_the_checkpoint_the_same_kill_would_start_over(tmp_path: Path) -> None:
    """The steps that are not run again are those of the checkpoint: the newest multiple below the kill."""
    rows: list[dict[str, Any]] = []
    with pytest.raises(Killed):
        fit(tmp_path, rows, die_after=14)
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", "key")
    assert checkpoint.step() == 12 and len(rows) == 14
    ran: list[int] = []
    fit_pairs(
        new_head(CACHE), CACHE, PAIRS[8:], PAIRS[:8], make_config(CONFIG), reference=new_head(CACHE, seed=1),
        log=lambda row: ran.append(row["step"]), checkpoint=checkpoint,
    )  # fmt: skip
    assert ran == list(range(13, STEPS + 1))


def test_patience_is_resumed_too(tmp_path: Path) -> None:
    """Checks without improvement before the kill count after it; a fit that was over stays over."""
    rows: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    change = {"patience": 4, "learning_rate": 1e-9}
    fit(tmp_path / "alone", alone, **change)
    assert "stopped" in alone[-1] and alone[-1]["step"] < STEPS
    for k in (alone[-1]["step"] - 1, alone[-1]["step"]):
        with pytest.raises(Killed):
            fit(tmp_path / "killed", rows, die_after=k, **change)
    fit(tmp_path / "killed", rows, checkpoint_every=1, **change)
    fit(tmp_path / "killed", rows, **change)
    assert rows == alone


def test_the_best_step_before_the_kill_is_remembered(tmp_path: Path) -> None:
    """Where the best validation comes before the checkpoint, and the weights there are others."""
    change = {"learning_rate": 0.2, "schedule": "constant"}
    alone: list[dict[str, Any]] = []
    expected = fit(tmp_path / "alone", alone, **change)
    best = min((row for row in alone if "validation_loss" in row), key=lambda row: row["validation_loss"])
    assert best["step"] == 19
    rows: list[dict[str, Any]] = []
    with pytest.raises(Killed):
        fit(tmp_path / "killed", rows, die_after=21, **change)
    assert same_bits(fit(tmp_path / "killed", rows, **change).state_dict(), expected.state_dict()) and rows == alone


def saved(folder: Path) -> tuple[Path, bytes]:
    with pytest.raises(Killed):
        fit(folder, [], die_after=10)
    path = folder / "checkpoint.safetensors"
    return path, path.read_bytes()


def test_it_is_a_safetensors_file_with_plain_json(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
        names = set(file.keys())
    assert header["step"] == 8 and header["key"] == "key"
    assert {"generator", "scores", "module.mlp.0.weight", "best.mlp.0.weight", "optimiser.0.exp_avg"} <= names
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_bit_that_flipped_anywhere_is_noticed(tmp_path: Path, whole: Any) -> None:
    path, data = saved(tmp_path)
    for place in range(9, len(data), len(data) // 40):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        said: list[str] = []
        assert Checkpoint(path, "key", said.append).step() == 0, place
        assert "checkpoint.safetensors' cannot be used" in said[0] or "other settings" in said[0]
        assert said[0].endswith("at step 1.")


def test_an_edited_header_is_noticed(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    edited = data.replace(rb"\"step\": 8", rb"\"step\": 4")
    assert edited != data and len(edited) == len(data)
    path.write_bytes(edited)
    said: list[str] = []
    assert Checkpoint(path, "key", said.append).step() == 0
    assert "cannot be used (its checksum is wrong)" in said[0]


@pytest.mark.parametrize("length", [0, 5, 100, 3000, -1])
def test_a_truncated_one_is_set_aside_and_the_fit_starts_over(tmp_path: Path, whole: Any, length: int) -> None:
    path, data = saved(tmp_path)
    path.write_bytes(data[:length])
    rows: list[dict[str, Any]] = []
    said: list[str] = []
    assert same_bits(fit(tmp_path, rows, said=said.append).state_dict(), whole[0]) and rows == whole[1]
    assert len(said) == 1 and "cannot be used" in said[0] and said[0].endswith("this head's training starts again at step 1.")


def test_one_of_another_key_is_ignored_and_replaced(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    said: list[str] = []
    other = Checkpoint(path, "another key", said.append)
    assert other.step() == 0 and other.load() is None
    assert "is of other settings or data" in said[0]
    other.save(3, {"x": torch.ones(2)}, {})
    assert Checkpoint(path, "another key").step() == 3 and Checkpoint(path, "key", said.append).step() == 0


def test_a_foreign_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, path)
    said: list[str] = []
    assert Checkpoint(path, "key", said.append).step() == 0 and "cannot be used" in said[0]


def test_a_head_of_other_sizes_is_refused(tmp_path: Path) -> None:
    """Its key should have told; if not, this does, before torch would."""
    path, _ = saved(tmp_path)
    with pytest.raises(RunError, match=r"module with other sizes\. Delete it"):
        fit_pairs(new_head(CACHE, hidden=9), CACHE, PAIRS, [], make_config(CONFIG), checkpoint=Checkpoint(path, "key"))


def test_a_write_that_fails_leaves_the_one_before_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = saved(tmp_path)
    checkpoint = Checkpoint(path, "key")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(16, {"x": torch.ones(2)}, {})
    assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]
    assert checkpoint.step() == 8


def test_removing_it_removes_half_a_file_too(tmp_path: Path) -> None:
    path, data = saved(tmp_path)
    path.with_name(path.name + ".partial").write_bytes(data[:100])
    remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []
    remove_checkpoint(path)


class Elsewhere(Processes):
    """Two processes of which the other one sees another disk."""

    def gather(self, value: Any) -> list[Any]:
        return [value, 0]


def test_processes_that_see_different_checkpoints_are_stopped(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with pytest.raises(RunError, match=r"different steps \(8, 0\).*output_dir on a disk that all of them share"):
        fit_pairs(
            new_head(CACHE), CACHE, PAIRS, [], make_config(CONFIG), checkpoint=Checkpoint(path, "key"), processes=Elsewhere()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64])
def test_every_kind_of_tensor_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint(tmp_path / "deep" / "c.safetensors", "key")
    tensors = {"none": torch.zeros(0, 3).to(dtype), "one": torch.tensor(3).to(dtype), "many": (torch.randn(4, 5) * 9).to(dtype)}
    checkpoint.save(7, tensors, {"fact": [1, None, 0.1]})
    found = Checkpoint(tmp_path / "deep" / "c.safetensors", "key").load()
    assert found is not None and found.step == 7 and found.facts == {"fact": [1, None, 0.1]}
    assert same_bits(found.tensors, tensors) and all(value.dtype == dtype for value in found.tensors.values())
