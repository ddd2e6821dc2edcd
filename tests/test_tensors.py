"""The helpers for gathers and segment sums against loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.tensors import pick, segment_sum


@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), max_size=2), st.integers(1, 5))
def test_pick_takes_one_element_of_each_row(seed: int, shape: list[int], K: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x_NK, i_N = torch.randn(*shape, K, generator=random), torch.randint(K, shape, generator=random)
    found = pick(x_NK, i_N)
    assert found.shape == i_N.shape
    assert found.flatten().tolist() == [row[i] for row, i in zip(x_NK.view(-1, K).tolist(), i_N.flatten().tolist(), strict=True)]


@pytest.mark.parametrize("rest", [(), (3,)])
@given(seed=st.integers(0, 10**6), B=st.integers(0, 3), T=st.integers(0, 6))
def test_segment_sums_are_those_of_a_loop(rest: tuple[int, ...], seed: int, B: int, T: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x_BT, segment_BT = torch.randn(B, T, *rest, generator=random, dtype=torch.float64), torch.randint(4, (B, T), generator=random)
    slow_BS = torch.zeros(B, 4, *rest, dtype=torch.float64)
    for b in range(B):
        for t in range(T):
            slow_BS[b, segment_BT[b, t]] += x_BT[b, t]
        assert torch.allclose(segment_sum(x_BT[b], segment_BT[b], 4), slow_BS[b])
    assert torch.allclose(segment_sum(x_BT, segment_BT, 4), slow_BS)
