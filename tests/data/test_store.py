"""Any number of shards read like one cache, whether they are in memory or streamed, and memory stays bounded."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_cases import as_made, make_cache, padded

import latentknobs as lk
from latentknobs.data.moments import Moments
from latentknobs.data.segment_batches import FeatureCache, Features
from latentknobs.data.shard import write_shard
from latentknobs.data.store import FeatureStore
from latentknobs.errors import ConfigError, RunError, UnreachableTokenError
from latentknobs.heads.option_head import OptionHead
from latentknobs.learners.lpo import lpo_loss

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
shards = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=4).filter(
    lambda lengths: sum(map(sum, lengths)) > 0
)


def write(folder, lengths, dtype=torch.float32, seed=0) -> tuple[list, FeatureCache]:
    """Shards of responses of so many segments, and the same in one cache."""
    caches = [make_cache(seed + s, list(shard), dtype) for s, shard in enumerate(lengths)]
    paths = [folder / f"{s}.safetensors" for s in range(len(caches))]
    for path, cache in zip(paths, caches, strict=True):
        write_shard(path, as_made(cache))
    return paths, FeatureCache.join(caches)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected)


@given(shards, st.sampled_from(DTYPES), st.data())
def test_streamed_in_memory_and_one_cache_are_the_same_bit_by_bit(tmp_path_factory, lengths, dtype, data):
    paths, cache = write(tmp_path_factory.mktemp("store"), lengths, dtype)
    streamed, loaded = FeatureStore(paths, ram_bytes=0), FeatureStore(paths, ram_bytes=1e9)
    assert streamed.is_streamed and not loaded.is_streamed
    asked = torch.tensor(data.draw(st.lists(st.integers(0, len(cache) - 1), min_size=1, max_size=6)))
    kept = data.draw(st.sampled_from([slice(None), slice(0, -1), slice(-1, None), slice(1, 4, 2)]))
    rows = data.draw(st.integers(1, 20))
    every: list[Features] = [streamed, loaded, cache]
    assert {len(one) for one in every} == {len(cache)}
    found = [one.select(kept).segments(asked) for one in every]
    samples = [one.select(kept).sample(rows) for one in every]
    for segments, sample in zip(found[:2], samples[:2], strict=True):
        assert same(segments.length_U, found[2].length_U)
        assert same(segments.feature_MF, found[2].feature_MF)
        assert segments.feature_MF.is_contiguous(), "a product with a view of a wider matrix rounds differently"
        assert segments.columns.keys() == found[2].columns.keys()
        for name in segments.columns:
            assert same(segments[name], found[2][name]), name
        assert same(sample, samples[2])


@given(shards)
def test_moments_are_the_same_number_whatever_is_in_memory_and_never_need_the_rows(tmp_path_factory, lengths):
    paths, cache = write(tmp_path_factory.mktemp("store"), lengths)
    stores = [FeatureStore(paths, ram_bytes=ram) for ram in (0, 1e9)]
    stores[1].segments(torch.tensor([0]))  # loads it
    for path in paths:
        path.unlink()
    moments = [store.moments() for store in stores]
    for found, again, expected in zip(*moments, (cache.feature_NF.double().mean(0), cache.moments()[1]), strict=True):
        assert same(found, again)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    part = stores[0].select(slice(1, 3)).moments()
    assert same(part[0], moments[0][0][1:3]) and same(part[1], moments[0][1][1:3])


def test_moments_are_of_all_segments_also_of_those_left_out(tmp_path):
    cache = make_cache(1, [3, 4])
    keep_N = torch.tensor([1, 0, 0, 1, 1, 0, 1], dtype=torch.bool)
    write_shard(tmp_path / "a", as_made(cache, keep_N=keep_N))
    store = FeatureStore([tmp_path / "a"], ram_bytes=0)
    assert (store.skipped, store.total) == (3, 7)
    assert same(store.moments()[1], Moments.of(cache.feature_NF).std_F)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_head_learns_the_same_from_either_bit_by_bit(tmp_path, dtype):
    paths, cache = write(tmp_path, [[3, 1, 0], [4, 2], [5]], dtype)
    space = lk.KnobSpace.of("temperature:0.5,1,2")
    gradients = []
    for features in (FeatureStore(paths, ram_bytes=0), FeatureStore(paths, ram_bytes=1e9), cache):
        torch.manual_seed(0)
        head = OptionHead(space, 4, hidden=8).to(torch.float64 if dtype == torch.float64 else torch.float32)
        torch.nn.init.normal_(head.mlp[-1].weight)
        seen = features.select(slice(0, -1))
        sides = [padded(seen.segments(torch.tensor(side))) for side in ([0, 3, 5], [2, 4, 1])]
        (chosen_BSF, chosen), (rejected_BSF, rejected) = sides
        loss_B = lpo_loss("latent", chosen, rejected, head(chosen_BSF), head(rejected_BSF))
        gradients.append([loss_B, *torch.autograd.grad(loss_B.sum(), head.parameters())])
    assert all(gradient.any() for gradient in gradients[0])
    for other in gradients[1:]:
        assert all(same(found, expected) for found, expected in zip(other, gradients[0], strict=True))


def test_unreachable_responses_are_counted_over_all_shards(tmp_path):
    write_shard(tmp_path / "a", as_made(make_cache(1, [2, 0, 3]), (1,)))
    write_shard(tmp_path / "b", as_made(make_cache(2, [0, 1]), (0,)))
    assert FeatureStore([tmp_path / "a", tmp_path / "b"], ram_bytes=0).unreachable == (1, 3)


def test_a_view_of_what_is_in_memory_shares_it_and_a_narrow_view_of_a_large_store_is_held(tmp_path):
    paths, _ = write(tmp_path, [[5, 5], [5]])
    row = 5 * 4 + 3 * 4 + 8 + 4
    store = FeatureStore(paths, ram_bytes=15 * row)
    assert store.nbytes == 15 * row and not store.is_streamed
    whole = store.segments(torch.tensor([1])).feature_MF
    view = store.select(slice(-1, None))
    for path in paths:
        path.unlink()
    assert same(view.segments(torch.tensor([1])).feature_MF, whole[..., -1:])
    paths, _ = write(tmp_path, [[5, 5], [5]])
    large = FeatureStore(paths, ram_bytes=15 * row - 1)
    assert large.is_streamed and not large.select(slice(-1, None)).is_streamed


def test_shards_of_different_runs_are_refused(tmp_path):
    write_shard(tmp_path / "a", as_made(make_cache(1, [2])))
    for other in (make_cache(1, [2], F=6), make_cache(1, [2], K=4), make_cache(1, [2], torch.bfloat16, F=10)):
        write_shard(tmp_path / "b", as_made(other))
        with pytest.raises(RunError, match=r"'.*b' and '.*a' hold different features, columns or options.*Delete both"):
            FeatureStore([tmp_path / "a", tmp_path / "b"], ram_bytes=0)


def test_nothing_to_learn_from_is_said_with_its_reason(tmp_path):
    cache = make_cache(1, [2, 3])
    write_shard(tmp_path / "a", as_made(cache, keep_N=torch.zeros(5, dtype=torch.bool)))
    with pytest.raises(ConfigError, match=r"All 5 segments are about as likely under each option.*Lower min_spread"):
        FeatureStore([tmp_path / "a"], ram_bytes=0)
    write_shard(tmp_path / "a", as_made(make_cache(1, [0, 0]), (0, 1)))
    with pytest.raises(UnreachableTokenError, match=r"Each of the 2 responses holds a token that no option.*set `floor`"):
        FeatureStore([tmp_path / "a"], ram_bytes=0)


def test_a_shard_that_disappears_meanwhile_is_named(tmp_path):
    paths, _ = write(tmp_path, [[5, 5], [5]])
    store = FeatureStore(paths, ram_bytes=0)
    paths[1].unlink()
    store.segments(torch.tensor([0, 1]))
    with pytest.raises(RunError, match=r"1\.safetensors' is missing or damaged .*No such file"):
        store.segments(torch.tensor([0, 2]))


CAP = 10_000_000
MEASURE = """
import json, sys
from pathlib import Path
import torch
from latentknobs.data.store import FeatureStore

def peak():  # of all resident memory. Not ru_maxrss: that begins with the peak of the parent
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

folder, ram_bytes = Path(sys.argv[1]), float(sys.argv[2])
torch.set_num_threads(1)
store = FeatureStore(sorted(folder.iterdir()), ram_bytes=ram_bytes)
first = FeatureStore(sorted(folder.iterdir())[:1], ram_bytes=0)
first.segments(torch.arange(16))  # everything that a first call brings in
before, rng, total = peak(), torch.Generator().manual_seed(0), 0.0
main, last = store.select(slice(0, -1)), store.select(slice(-1, None))
for step in range(300):
    batch = main.segments(torch.randint(len(store), (16,), generator=rng))
    total += float(batch.feature_MF.amax())
    if step % 20 == 0:
        main.sample(2000), store.moments(), last.segments(torch.arange(16))
print(json.dumps([peak() - before, main.is_streamed, last.is_streamed, total]))
"""


@pytest.fixture(scope="module")
def large_store(tmp_path_factory):
    """More than ten times the cap: 1,536 responses of 64 segments with 256 features."""
    folder = tmp_path_factory.mktemp("large")
    for s in range(12):
        write_shard(folder / f"{s:02d}.safetensors", as_made(make_cache(s, [64] * 128, F=256, K=6)))
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size > 10 * CAP
    return folder, size


def measure(folder, ram_bytes: float):
    code = [sys.executable, "-c", MEASURE, str(folder), str(ram_bytes)]
    done = subprocess.run(code, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_times_the_memory_streams_through(large_store):
    """The process grows by what it may hold, and some batches, whatever the size of the store. Measured is the peak of all
    resident memory."""
    folder, size = large_store
    grown, is_streamed, is_last_streamed, total = measure(folder, CAP)
    assert is_streamed and not is_last_streamed, "the one feature of the baseline fits under the cap, and is held"
    assert grown < 2.5 * CAP, "16 MB were seen with the machine busy; what is streamed are 104"
    whole, is_streamed, _, same_total = measure(folder, 1e9)
    assert not is_streamed
    assert whole > 0.9 * size, "a store that is loaded must be noticed by this test"
    assert same_total == total
