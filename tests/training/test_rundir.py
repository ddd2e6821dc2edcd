"""Files of a run directory: made once, redone when stale, never taken for good when damaged, and kept when a disk is full."""

import errno
import hashlib
import json
import os
import signal

import pytest
import torch
from forked import finished
from hypothesis import given, settings
from hypothesis import strategies as st

from latentknobs.errors import RunError
from latentknobs.training.manifest import Entry, Manifest
from latentknobs.training.rundir import RunDir, Task, explained


def task(file, key, made, text="content"):
    def make(path, advance):
        made.append(file)
        path.write_text(f"{text} of {file}")

    return Task(file, key, make)


def play(folder, key="k", text="content", names=("a", "b", "c")):
    """One run with one stage; which files it made, and what it said."""
    made, said = [], []
    with RunDir(folder, said.append) as run:
        run.stage("s", [task(f"s/{name}.txt", key, made, text) for name in names])
    return made, said


def test_finished_files_are_not_made_again(tmp_path):
    assert play(tmp_path)[0] == ["s/a.txt", "s/b.txt", "s/c.txt"]
    made, said = play(tmp_path)
    assert made == []
    assert said == ["s: already done, reused"]


def test_another_key_makes_them_again_and_the_old_key_does_not_match_new_content(tmp_path):
    play(tmp_path)
    assert len(play(tmp_path, "other", "changed")[0]) == 3
    assert len(play(tmp_path)[0]) == 3
    assert (tmp_path / "s/a.txt").read_text() == "content of s/a.txt"


def test_equal_content_under_an_old_key_is_found_again(tmp_path):
    play(tmp_path)
    play(tmp_path, "other")
    assert play(tmp_path)[0] == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_text("content of s"), "has 12 bytes instead of 18"),
        (lambda path: path.write_text("CONTENT of s/b.txt"), "was changed after it was written"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_file_is_noticed_told_and_only_it_is_made_again(tmp_path, damage, told):
    play(tmp_path)
    damage(tmp_path / "s/b.txt")
    made, said = play(tmp_path)
    assert made == ["s/b.txt"]
    assert told in said[0] and "b.txt" in said[0]
    assert (tmp_path / "s/b.txt").read_text() == "content of s/b.txt"


def test_files_that_a_stage_no_longer_has_are_removed(tmp_path):
    play(tmp_path)
    (tmp_path / "s/a.txt.partial").write_text("half")
    play(tmp_path, names=("a", "b"))
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["a.txt", "b.txt"]


def test_a_fresh_file_is_made_in_every_run(tmp_path):
    made = []
    for _ in range(2):
        with RunDir(tmp_path) as run:
            first = task("s/a.txt", "k", made)
            run.stage("s", [Task(first.file, first.key, first.make, fresh=True)])
    assert made == ["s/a.txt", "s/a.txt"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_manifest_says_only_whole_files_of_the_wanted_key_are_reused(tmp_path_factory, data):
    """An edited line is refused, or its file is made again; it is never taken for another file's."""
    folder = tmp_path_factory.mktemp("run")
    play(folder)
    path = folder / "manifest.jsonl"
    lines = path.read_text().splitlines()
    number = data.draw(st.integers(0, 2))
    entry = json.loads(lines[number])
    name = data.draw(st.sampled_from(["file", "key", "sha256"]))
    entry[name] = data.draw(st.sampled_from(["../../evil", "0" * 64, 7, None, "s/d.txt"]))
    path.write_text("\n".join([*lines[:number], json.dumps(entry), *lines[number + 1 :]]) + "\n")
    if entry[name] in (7, None, "../../evil") and (name == "file" or entry[name] != "../../evil"):
        with pytest.raises(RunError, match=r"Line .* of .*manifest.jsonl.*(not an entry|outside)"):
            RunDir(folder)
    else:
        assert play(folder)[0] == [f"s/{'abc'[number]}.txt"]


def test_a_removed_line_is_work_that_is_done_again(tmp_path):
    play(tmp_path)
    path = tmp_path / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[2])
    assert play(tmp_path)[0] == ["s/b.txt"]


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 200))
def test_a_half_written_last_line_is_what_an_interruption_leaves(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("run")
    play(folder)
    path = folder / "manifest.jsonl"
    whole = path.read_bytes()
    last = whole.split(b"\n")[-2]
    path.write_bytes(whole[: -min(cut, len(last))])
    assert play(folder)[0] == ["s/c.txt"]
    assert path.read_bytes().count(b"\n") == 3
    assert play(folder)[0] == []


def test_a_path_outside_the_run_directory_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "outside.txt").write_text("x")
    Manifest(tmp_path / "run").add(Entry("s", "../outside.txt", "k", "0", 1, 1, 0.0, 0.0))
    with pytest.raises(RunError, match=r"names '../outside.txt', which is outside"):
        RunDir(tmp_path / "run")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with RunDir(tmp_path), pytest.raises(RunError, match="Another run is working in"), RunDir(tmp_path):
        pass


def _killed_while_it_holds_the_lock(folder):
    RunDir(folder).__enter__()
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    assert finished(_killed_while_it_holds_the_lock, tmp_path) == -9
    assert len(play(tmp_path)[0]) == 3


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_explained_and_finished_files_are_kept(tmp_path, kind):
    def full(path, advance):
        raise OSError(kind, os.strerror(kind))

    made = []
    with pytest.raises(RunError, match=r"is full .*s could not be written.*Finished files are kept"), RunDir(tmp_path) as run:
        run.stage("s", [task("s/a.txt", "k", made), Task("s/b.txt", "k", full)])
    assert play(tmp_path)[0] == ["s/b.txt", "s/c.txt"]


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_that_cannot_be_written_is_not_called_full(tmp_path, kind):
    with pytest.raises(RunError, match=rf"cannot be written \(s: {os.strerror(kind)}\)\. Choose"), explained(tmp_path, "s"):
        raise OSError(kind, os.strerror(kind))


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), explained(tmp_path, "s"):
        raise FileNotFoundError(errno.ENOENT, "no")


def test_a_device_without_memory_is_explained(tmp_path):
    with (
        pytest.raises(RunError, match=r"ran out of memory in round-1/features.*read_batch"),
        explained(tmp_path, "round-1/features"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 34 GiB.")


def test_a_worker_that_outlived_its_run_still_holds_the_folder(tmp_path):
    left = RunDir(tmp_path)
    assert left._take_lock(3)  # as the process of rank 3 would
    with pytest.raises(RunError, match="Another run is working in"), RunDir(tmp_path):
        pass
    left.__exit__()
    with RunDir(tmp_path):
        pass


def test_rows_of_metrics_that_are_no_rows_are_passed_over(tmp_path):
    with RunDir(tmp_path) as run:
        run.log({"round": 1})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write("[1]\n3\n{")
        run.forget_metrics(lambda row: False)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 1}\n'


def test_the_hash_is_of_the_content_now(tmp_path):
    path = tmp_path / "x"
    path.write_text("one")
    manifest = Manifest(tmp_path)
    first = manifest.content("x")
    path.write_text("two!")
    assert manifest.content("x") == hashlib.sha256(path.read_bytes()).hexdigest() != first
