"""Keys are mixed by numpy on a CPU and by torch elsewhere: the numbers are the same."""

from unittest.mock import patch

import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.engines import uniforms as module


@given(
    st.integers(0, 2**80),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**40)), max_size=20),
)
def test_both_ways_to_mix_agree(seed: int, stream: int, keys: list[tuple[int, int]]) -> None:
    row_N, position_N = torch.tensor(keys, dtype=torch.long).view(-1, 2).unbind(1)
    here_N = module.uniforms(seed, stream, row_N, position_N)
    with patch.object(module, "host_sees", lambda tensor: False):
        assert torch.equal(module.uniforms(seed, stream, row_N, position_N), here_N)
