"""What replaces a file is complete and on the disk before it does, and an error leaves everything as it was."""

import errno
import os
import sys

import pytest
import torch
from safetensors.torch import load_file

from latentknobs.data.disk import replacing, save_tensors


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half of")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_is_on_the_disk_before_it_takes_its_place_and_the_folder_after(tmp_path, monkeypatch):
    path, synced = tmp_path / "a", []
    really = os.fsync

    def fsync(handle):
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), path.exists()))
        really(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    save_tensors({"x": torch.arange(3)}, path)
    assert synced == [(f"{path}.partial", False), (str(tmp_path), True)]
    assert load_file(path)["x"].tolist() == [0, 1, 2]


def test_a_disk_that_turns_out_to_be_full_at_the_last_moment_is_no_loss(tmp_path, monkeypatch):
    """Some file systems find room only when they must."""
    save_tensors({"x": torch.arange(3)}, tmp_path / "a")

    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        save_tensors({"x": torch.arange(9)}, tmp_path / "a")
    assert load_file(tmp_path / "a")["x"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        save_tensors({"x": torch.arange(3)}, tmp_path / "none" / "a")
    assert error.value.filename == str(tmp_path / "none" / "a")
