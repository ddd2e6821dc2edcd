"""A shard is complete or not there; what is damaged is named; a full disk is an OSError that says so."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from store_cases import as_made, make_cache

from latentknobs.data.shard import SMALL, Shard, write_shard
from latentknobs.errors import RunError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "00000.safetensors"
    write_shard(path, as_made(make_cache(1, [2, 0, 3]), unreachable=(1,)))
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_shard_gives_back_what_was_written_row_by_row(tmp_path, dtype):
    cache, keep_N = make_cache(2, [3, 0, 4], dtype), torch.tensor([1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    made = as_made(cache, (1,), keep_N)
    write_shard(tmp_path / "a.safetensors", made)
    shard = Shard(tmp_path / "a.safetensors")
    assert (shard.unreachable, shard.skipped, shard.total) == ((1,), 2, 7)
    assert torch.equal(shard.start_R1, torch.tensor([0, 2, 2, 5]))
    assert shard.moments.count == made.moments.count
    assert torch.equal(shard.moments.mean_F, made.moments.mean_F) and torch.equal(shard.moments.std_F, made.moments.std_F)
    assert shard.columns == ("feature_NF", *sorted(cache.columns))
    for name, expected_N in {"feature_NF": made.cache.feature_NF, **made.cache.columns}.items():
        parts = [(first, torch.empty_like(expected_N[first:end])) for first, end in ((0, 5), (1, 2), (3, 5), (2, 2))]
        shard.read(name, parts)
        assert all(torch.equal(out_N, expected_N[first : first + len(out_N)]) for first, out_N in parts), name
    assert load_file(tmp_path / "a.safetensors").keys() == {"feature_NF", *cache.columns, *SMALL}, (
        "any other reader of the format can read it"
    )


def test_the_same_rows_give_the_same_bytes(tmp_path):
    """So that a content hash of a stage means something."""
    for name in ("a", "b"):
        write_shard(tmp_path / name, as_made(make_cache(1, [2, 3]), (0,)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-8])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:20])


def emptied(path):
    path.write_bytes(b"")


def removed(path):
    path.unlink()


def without_a_column(path):
    tensors = load_file(path)
    del tensors["feature_NF"]
    save_file(tensors, path)


def of_other_numbers(path):
    save_file(load_file(path) | {"feature_NF": torch.zeros(5, 5, dtype=torch.float16)}, path)


def with_a_row_too_few(path):
    save_file(load_file(path) | {"option_N": torch.zeros(4, dtype=torch.long)}, path)


def with_responses_that_run_backwards(path):
    save_file(load_file(path) | {"start_R1": torch.tensor([0, 4, 2, 5])}, path)


@pytest.mark.parametrize(("damage", "why"), [
    (cut_short, ".*"),
    (cut_in_the_header, ".*"),
    (emptied, ".*"),
    (removed, "No such file"),
    (without_a_column, "it has no feature_NF"),
    (of_other_numbers, "it holds F16 numbers"),
    (with_a_row_too_few, "its parts do not fit each other"),
    (with_responses_that_run_backwards, "its parts do not fit each other"),
])  # fmt: skip
def test_damage_is_named_with_the_next_step(path, damage, why):
    Shard(path)
    damage(path)
    with pytest.raises(RunError, match=rf"00000.safetensors' is missing or damaged \(.*{why}.*\)\. Delete it and give the same"):
        Shard(path)


@pytest.mark.parametrize("size", [0, 600, -1])
def test_a_shard_that_is_cut_after_it_was_opened_is_an_error(path, size):
    shard = Shard(path)
    os.truncate(path, size % path.stat().st_size)
    with pytest.raises(RunError, match=r"missing or damaged .*it was cut short or replaced"):
        shard.read("feature_NF", [])


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_and_no_crash(path):
    shard = Shard(path)

    def parts():  # the file is open by now
        os.truncate(path, 100)
        yield 0, torch.empty(5, 5)

    with pytest.raises(RunError, match=r"missing or damaged .*it ends early"):
        shard.read("feature_NF", parts())


def test_a_shard_that_is_replaced_after_it_was_opened_is_named(path):
    shard = Shard(path)
    for lengths in ([2, 0, 4], [2, 0, 3]):  # longer, and of the same size
        write_shard(path, as_made(make_cache(2, lengths), unreachable=(1,)))
        with pytest.raises(RunError, match=r"missing or damaged .*it was cut short or replaced"):
            shard.read("feature_NF", [])


FULL = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_cases import as_made, make_cache
from latentknobs.data.shard import write_shard
path, limit = Path(sys.argv[1]), int(sys.argv[3])
write_shard(path, as_made(make_cache(1, [2])))
before = path.read_bytes()
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    write_shard(path, as_made(make_cache(1, [100_000], F=8)))
except OSError as error:
    told = [error.errno, error.strerror, error.filename]
print(json.dumps([told, sorted(p.name for p in path.parent.iterdir()), path.read_bytes() == before]))
"""


def overflow(folder, limit: int):
    code = [sys.executable, "-c", FULL, str(folder / "a.safetensors"), os.path.dirname(__file__), str(limit)]
    done = subprocess.run(code, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_a_file_that_may_not_grow_leaves_the_old_one_and_no_half_of_a_new_one(tmp_path):
    (number, text, name), left, is_old = overflow(tmp_path, limit=1 << 20)
    assert (number, text) == (errno.EFBIG, os.strerror(errno.EFBIG))
    assert name == str(tmp_path / "a.safetensors")
    assert (left, is_old) == (["a.safetensors"], True)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 1 MiB, where mounting one is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_the_old_file_and_no_half_of_a_new_one(tiny_disk):
    (number, text, _), left, is_old = overflow(tiny_disk, limit=0)
    assert (number, text) == (errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (left, is_old) == (["a.safetensors"], True)
