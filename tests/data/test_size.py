"""What is said before a run starts holds, and a disk that is too small is refused."""

import os
import shutil
import subprocess
from collections import namedtuple

import pytest
import torch
from store_cases import as_made, make_cache

import latentknobs as lk
from latentknobs import testbed
from latentknobs.config import TrainConfig
from latentknobs.data.featurise import featurise
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out, write_lines
from latentknobs.data.shard import write_shard
from latentknobs.data.size import Size, amount, bytes_per_segment, check_space, estimate
from latentknobs.errors import RunError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.policies import UniformPolicy

SMALL = {"train_prompts": 4, "rollouts": 4, "max_new_tokens": 16, "shard_size": 8, "eval_size": 0}


@pytest.mark.parametrize(
    ("F", "K", "dtype", "size"), [(512, 6, "float32", 2084), (512, 6, "bfloat16", 1060), (1, 1, "float32", 20)]
)
def test_a_segment_takes_as_many_bytes_as_a_row_of_a_shard(tmp_path, F, K, dtype, size):
    assert bytes_per_segment(F, K, dtype) == size
    files = []
    for N in (1, 101):
        write_shard(tmp_path / str(N), as_made(make_cache(0, [N], getattr(torch, dtype), F, K)))
        files.append((tmp_path / str(N)).stat().st_size)
    assert files[1] - files[0] == pytest.approx(100 * size, abs=32)  # the header holds sizes in decimal


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("hidden_size", [16, 512])
def test_features_of_full_length_take_nearly_what_was_said_and_never_more(tmp_path, hidden_size, dtype):
    config = TrainConfig(**SMALL, feature_dtype=dtype, rounds=2)
    size = estimate(config, hidden_size, K=6, prompts=4)
    assert (size.responses, size.segments) == (16, 16)
    written = 0
    for number in range(2):
        cache = make_cache(number, [16] * 8, getattr(torch, dtype), F=hidden_size + 1, K=6)
        write_shard(tmp_path / str(number), as_made(cache))
        written += (tmp_path / str(number)).stat().st_size
    assert written <= size.features
    assert hidden_size < 512 or size.features <= 1.25 * written


def test_real_responses_and_features_of_the_testbed_stay_below(tmp_path):
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    space = lk.KnobSpace.of("temperature:0.5,1,2")
    config = TrainConfig(**SMALL | {"train_prompts": 8})
    prompts = make_prompts(testbed.prompts("mixture", "train", 8), tokenizer)
    policy = UniformPolicy(space, parse_level("token"))
    rollouts = roll_out(model, tokenizer, prompts, policy, copies=4, max_new_tokens=16, batch_size=32, seed=0)
    size = estimate(config, model.config.hidden_size, space.K, prompts=8)
    write_lines(tmp_path / "rollouts.jsonl", rollouts)
    assert (tmp_path / "rollouts.jsonl").stat().st_size < size.rollouts
    write_shard(tmp_path / "shard", featurise(model, prompts, rollouts[::2], space, policy.segmenter, ("hidden", "entropy")))
    assert 0.4 * size.features < (tmp_path / "shard").stat().st_size < size.features


@pytest.mark.parametrize(("level", "segments"), [("token", 16), ("every:3", 6), ("sequence", 1), ("delimiter:.", 16)])
def test_segments_are_those_of_the_level(level, segments):
    assert estimate(TrainConfig(**SMALL, level=level), 8, 3, 4).segments == segments


@pytest.mark.parametrize(("settings", "given", "responses"), [
    ({}, None, 8),
    ({"rounds": 3}, None, 24),
    ({"pairs_per_prompt": 2}, None, 16),
    ({"pairs_per_prompt": 9}, None, 16),  # four rollouts are at most two pairs
    ({"pair_rule": "correct_incorrect", "pairs_per_prompt": 2}, None, 8),
    ({}, 50, 50),
    ({"rounds": 3}, 50, 66),
])  # fmt: skip
def test_responses_in_pairs_are_counted_as_the_rules_pick_them(settings, given, responses):
    assert estimate(TrainConfig(**SMALL | settings), 8, 3, 4, given).responses == responses


@pytest.mark.parametrize("told", [{}, {"hidden": 32}, {"rank": 4}, {"hidden": 8, "rank": 2}])
def test_heads_and_a_checkpoint_with_its_successor_fit(told):
    config = TrainConfig(**SMALL, **told)
    size = estimate(config, 64, K=3, prompts=4)
    space = lk.KnobSpace.of("temperature:0.5,1,2")
    main, entropy = (sum(value.nbytes for value in OptionHead(space, F, **told).state_dict().values()) for F in (65, 1))
    checkpoint = 4 * main  # weights, best weights, and two moments
    assert 3 * main + entropy + checkpoint < size.heads, "head, adapter, baseline, and what replaces the checkpoint"


def test_the_sentence_holds_the_numbers():
    config = TrainConfig(train_prompts=2048, max_new_tokens=64)
    assert estimate(config, hidden_size=511, K=6, prompts=2048).sentence() == (
        "A segment takes 2,084 bytes (512 features in float32, 6 options): at most 546.5 MB for 4,096 responses of 64 segments. "
        "The whole run takes at most 590.2 MB of disk."
    )
    few = estimate(config.model_copy(update={"level": "sequence"}), 511, K=1, prompts=2048).sentence()
    assert "1 option)" in few and "of 1 segment." in few


@pytest.mark.parametrize(("size", "text"), [
    (0, "0 bytes"), (999_999, "999,999 bytes"), (1_000_000, "1.0 MB"), (1_340_000_000, "1.3 GB"), (2 * 10**12, "2.0 TB"),
])  # fmt: skip
def test_amounts_are_readable(size, text):
    assert amount(size) == text


Usage = namedtuple("Usage", "total used free")


def disk_of(monkeypatch, free: int) -> list:
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(0, 0, free))
    return asked


def sized(features: int, dtype: str = "float32") -> Size:
    return Size(0, features, 0, 0, F=512, K=6, dtype=dtype, responses=4096, segments=64)


def test_a_disk_that_is_too_small_is_refused_with_the_numbers_and_the_next_step(tmp_path, monkeypatch):
    path = tmp_path / "not" / "yet"
    asked = disk_of(monkeypatch, 999_000_000)
    with pytest.raises(RunError) as error:
        check_space(path, sized(1_300_000_000))
    assert str(error.value).startswith(
        f"The run may need 1.3 GB of disk, and 999.0 MB are free at {str(path)!r}. A segment takes"
    )
    assert "Set feature_dtype to bfloat16, lower train_prompts, pairs_per_prompt" in str(error.value)
    assert asked == [tmp_path], "the folder itself does not exist yet"
    with pytest.raises(RunError, match=r"disk\. Lower train_prompts.*or choose another output_dir\.$"):
        check_space(path, sized(1_300_000_000, "bfloat16"))
    check_space(path, sized(999_000_000))


def test_what_an_interrupted_run_left_need_not_be_found_again(tmp_path, monkeypatch):
    folder = tmp_path / "round-1" / "features"
    folder.mkdir(parents=True)
    (folder / "00000.safetensors").write_bytes(bytes(3_000_000))
    (tmp_path / "other.bin").write_bytes(bytes(5_000_000))
    disk_of(monkeypatch, 2_000_000)
    check_space(tmp_path, sized(5_000_000))
    with pytest.raises(RunError, match=r"may need 2\.5 MB of disk, and 2\.0 MB are free"):
        check_space(tmp_path, sized(5_500_000))


def test_a_real_small_disk_is_refused(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        check_space(disk / "run", sized(1_000_000))
        with pytest.raises(RunError, match=r"may need 1\.1 MB of disk, and 1\.0 MB are free at '.*disk/run'"):
            check_space(disk / "run", sized(1_100_000))
    finally:
        subprocess.run(["umount", disk], check=True)
