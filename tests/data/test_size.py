"""What is said before a run starts holds, and a disk that may be too small is announced."""

import shutil
from collections import namedtuple

import pytest
import torch
from store_cases import as_made, make_cache

from latentknobs.data.columns import ALL, row_bytes
from latentknobs.data.shard import write_shard
from latentknobs.data.size import disk_warning, most_segments

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("F", "K"), [(512, 6), (1, 1)])
def test_a_segment_takes_as_many_bytes_as_a_row_of_a_shard(tmp_path, F, K, dtype):
    files = []
    for N in (1, 101):
        write_shard(tmp_path / str(N), as_made(make_cache(0, [N], getattr(torch, dtype), F, K)))
        files.append((tmp_path / str(N)).stat().st_size)
    size = 100 * (F * getattr(torch, dtype).itemsize + row_bytes(ALL, K, 7))
    assert files[1] - files[0] == pytest.approx(size, abs=32)  # the header holds sizes in decimal


@pytest.mark.parametrize(("level", "segments"), [("token", 16), ("every:3", 6), ("sequence", 1), ("delimiter:.", 16)])
def test_segments_are_those_of_the_level(level, segments):
    assert most_segments(level, 16) == segments


def disk_of(monkeypatch, free: int) -> list:
    folders = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: folders.append(path) or Usage(0, 0, free))
    return folders


def test_a_disk_that_is_too_small_is_announced_with_the_numbers_and_the_next_step(tmp_path, monkeypatch):
    path = tmp_path / "not" / "yet"
    folders = disk_of(monkeypatch, 999_000_000)
    told = disk_warning(path, 1_300_000_000)
    assert told is not None
    assert told.startswith(f"The features may take 1.3 GB of disk, and 999.0 MB are free at {str(path)!r}.")
    assert "feature_dtype=bfloat16, or lower train_prompts" in told
    assert folders == [tmp_path], "the folder itself does not exist yet"
    assert disk_warning(path, 999_000_000) is None


def test_features_of_an_interrupted_run_need_no_room_again(tmp_path, monkeypatch):
    folder = tmp_path / "round-1" / "features"
    folder.mkdir(parents=True)
    (folder / "00000.safetensors").write_bytes(bytes(3_000_000))
    (tmp_path / "other.bin").write_bytes(bytes(5_000_000))
    disk_of(monkeypatch, 2_000_000)
    assert disk_warning(tmp_path, 5_000_000) is None
    assert "5.5 MB of disk, and 5.0 MB are free" in str(disk_warning(tmp_path, 5_500_000))
