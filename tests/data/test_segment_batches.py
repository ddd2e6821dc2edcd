"""Batches of features: the right rows in the right places, also where a response has none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_cases import make_cache, padded

from latentknobs.data.moments import Moments
from latentknobs.data.segment_batches import FeatureCache, Features
from latentknobs.learners.lpo import lpo_loss
from latentknobs.learners.lpo.losses import log_marginals

caches = st.builds(
    make_cache,
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    dtype=st.just(torch.float64),
)


def rows_of(cache: FeatureCache, name: str, r: int) -> list:
    column_N = cache.feature_NF if name == "feature_NF" else cache.columns[name]
    return column_N[int(cache.start_R1[r]) : int(cache.start_R1[r + 1])].tolist()


COLUMNS = ("feature_NF", "logps_NK", "option_N", "base_N")


@given(caches, st.data())
def test_segments_are_those_of_each_response_one_after_the_other(cache, data):
    wanted = data.draw(st.lists(st.integers(0, len(cache) - 1), min_size=1, max_size=5))
    found = cache.segments(torch.tensor(wanted))
    assert found.length_U.tolist() == [len(rows_of(cache, "base_N", r)) for r in wanted]
    assert found.feature_MF.tolist() == [row for r in wanted for row in rows_of(cache, "feature_NF", r)]
    for name in COLUMNS[1:]:
        assert found[name].tolist() == [row for r in wanted for row in rows_of(cache, name, r)]
    mask_US = found.mask_US
    assert mask_US.shape == (len(wanted), max(1, *found.length_U.tolist()))
    assert mask_US.sum(-1).tolist() == found.length_U.tolist()
    assert all(row == sorted(row, reverse=True) for row in mask_US.tolist())


@given(caches, st.integers(0, 2**31))
def test_leaving_out_segments_and_joining_keep_every_response_in_its_place(cache, seed):
    keep_N = torch.rand(len(cache.feature_NF), generator=torch.Generator().manual_seed(seed)) < 0.5
    kept = cache.where(keep_N)
    both = FeatureCache.join([kept, cache])
    assert len(kept) == len(cache) and len(both) == 2 * len(cache)
    for name in COLUMNS:
        for r in range(len(cache)):
            wanted = keep_N[int(cache.start_R1[r]) : int(cache.start_R1[r + 1])].tolist()
            expected = [row for row, is_kept in zip(rows_of(cache, name, r), wanted, strict=True) if is_kept]
            assert rows_of(kept, name, r) == expected
            assert rows_of(both, name, r) == expected
            assert rows_of(both, name, len(cache) + r) == rows_of(cache, name, r)


@pytest.mark.parametrize("lengths", [[2, 0], [0, 3], [0, 0]], ids=str)
def test_a_response_without_segments_has_log_ratio_0(lengths):
    """The batch of a response all of whose segments were left out, up to the loss and its gradient."""
    cache = make_cache(1, lengths, torch.float64)
    chosen, rejected = (padded(cache.segments(torch.tensor([r])))[1] for r in (0, 1))
    log_pi = [torch.zeros_like(side.option_logps_BTK).log_softmax(-1).requires_grad_() for side in (chosen, rejected)]
    for side, log_pi_BSK, length in zip((chosen, rejected), log_pi, lengths, strict=True):
        marginal_BS = log_marginals(log_pi_BSK, side)
        assert marginal_BS.shape == (1, max(1, length))
        assert length or marginal_BS.tolist() == [[0.0]]
    loss_B = lpo_loss("latent", chosen, rejected, *log_pi, length_norm="mean")
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    for log_pi_BSK, length in zip(log_pi, lengths, strict=True):
        assert log_pi_BSK.grad.isfinite().all()
        assert length or not log_pi_BSK.grad.any()


def test_sixteen_bits_are_widened_and_float64_stays():
    for dtype, read in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        cache = make_cache(2, [2, 1], dtype)
        assert cache.segments(torch.tensor([0])).feature_MF.dtype == cache.sample(2).dtype == read
        assert torch.equal(cache.segments(torch.tensor([1])).feature_MF, cache.feature_NF[2:].to(read))


def test_a_selection_keeps_everything_else():
    cache: Features = make_cache(3, [2, 3], torch.float32)
    part = cache.select(slice(-1, None)).segments(torch.tensor([0, 1]))
    whole = cache.segments(torch.tensor([0, 1]))
    assert torch.equal(part.feature_MF, whole.feature_MF[:, -1:])
    assert torch.equal(part["logps_NK"], whole["logps_NK"])


@given(st.integers(0, 2**31), st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_moments_are_the_same_in_one_piece_or_in_several(seed, sizes):
    """Around 10^6, where sums of squares would keep no digit of a variance of 1."""
    rng = torch.Generator().manual_seed(seed)
    feature_NF = torch.randn(sum(sizes), 3, generator=rng, dtype=torch.float64) + 1e6
    whole = Moments.of(feature_NF)
    pieces = sum((Moments.of(piece) for piece in feature_NF.split(sizes)), start=Moments.of(feature_NF[:0]))
    assert whole.count == pieces.count == sum(sizes)
    if sum(sizes):
        for moments in (whole, pieces):
            torch.testing.assert_close(moments.mean_F, feature_NF.mean(0), rtol=1e-14, atol=0)
            torch.testing.assert_close(moments.std_F, feature_NF.std(0, correction=0), rtol=1e-8, atol=1e-9)


def test_moments_of_nothing_are_zeros_and_of_many_blocks_are_right():
    assert Moments.of(torch.zeros(0, 2)).std_F.tolist() == [0.0, 0.0]
    feature_NF = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Moments.of(feature_NF).std_F, feature_NF.double().std(0, correction=0), rtol=1e-12, atol=0)
