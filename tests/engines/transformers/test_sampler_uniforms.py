"""Few keys are mixed in Python's integers, many in tensors: the numbers are the same."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.engines.transformers import uniforms as module


@given(
    st.integers(0, 2**80),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**40)), min_size=17, max_size=20),
)
def test_both_ways_to_mix_agree(seed: int, stream: int, keys: list[tuple[int, int]]) -> None:
    row_N, position_N = torch.tensor(keys).unbind(1)
    many_N = module.uniforms(seed, stream, row_N, position_N)
    assert many_N.tolist() == [module.uniform(seed, stream, row, position) for row, position in keys]
    assert torch.equal(module.uniforms(seed, stream, row_N[:3], position_N[:3]), many_N[:3])
