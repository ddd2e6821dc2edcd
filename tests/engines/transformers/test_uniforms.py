"""Counter-based uniforms: uniform, repeatable, and independent across seeds, streams, rows and positions."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from latentknobs.engines.uniforms import signed, uniforms


def table(seed: int, stream: int, rows: int, positions: int) -> Tensor:
    """(rows, positions)."""
    row_N, position_N = torch.cartesian_prod(torch.arange(rows), torch.arange(positions)).unbind(1)
    return uniforms(seed, stream, row_N, position_N).view(rows, positions)


def splitmix(seed: int, count: int) -> list[int]:
    """SplitMix64 as published, in Python integers."""
    mask, out, state = (1 << 64) - 1, [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_the_mixing_function_is_splitmix64() -> None:
    from latentknobs.engines.uniforms import _mix

    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973], "the published test vector"
    states = [(1234567 + (i + 1) * 0x9E3779B97F4A7C15) % 2**64 for i in range(50)]
    mixed = _mix(torch.tensor([signed(state) for state in states]))
    assert [value % 2**64 for value in mixed.tolist()] == splitmix(1234567, 50)


any_int = st.integers(0, 2**62)


@given(st.integers(0, 2**80), st.integers(0, 3), st.lists(st.tuples(any_int, any_int), min_size=1, max_size=8))
def test_numbers_lie_in_the_half_open_unit_interval_and_ignore_the_batch(
    seed: int, stream: int, keys: list[tuple[int, int]]
) -> None:
    row_N, position_N = torch.tensor(keys).unbind(1)
    together_N = uniforms(seed, stream, row_N, position_N)
    assert together_N.dtype == torch.float64 and (together_N >= 0).all() and (together_N < 1).all()
    alone = [uniforms(seed, stream, row_N[n : n + 1], position_N[n : n + 1]).item() for n in range(len(keys))]
    assert together_N.tolist() == alone
    assert torch.equal(uniforms(seed, stream, row_N.int() % 99, position_N), uniforms(seed, stream, row_N.int() % 99, position_N))


@given(st.lists(st.tuples(st.integers(0, 2**80), any_int, any_int), min_size=1, max_size=8))
def test_every_row_may_have_a_seed_of_its_own(keys: list[tuple[int, int, int]]) -> None:
    seeds, rows, positions = zip(*keys, strict=True)
    seed_N, row_N, position_N = torch.tensor([signed(seed) for seed in seeds]), torch.tensor(rows), torch.tensor(positions)
    alone = [uniforms(seed, 2, row_N[n : n + 1], position_N[n : n + 1]).item() for n, seed in enumerate(seeds)]
    assert uniforms(seed_N, 2, row_N, position_N).tolist() == alone


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_numbers_are_uniform_over_rows_and_over_positions(seed: int) -> None:
    found = table(seed, 0, 200, 200)
    assert stats.kstest(found.flatten().numpy(), "uniform").pvalue > 1e-3
    for line in (found[0], found[:, 0], found.diagonal()):
        assert stats.kstest(line.numpy(), "uniform").pvalue > 1e-3
    bits = (found * 2**53).long()
    for bit in (0, 26, 52):
        assert abs(((bits >> bit) & 1).double().mean().item() - 0.5) < 0.02


def test_no_two_uses_ever_share_a_number() -> None:
    """Not the same (row, position) in two streams or seeds, nor neighbouring rows across them."""
    seen: dict[float, tuple[int, int]] = {}
    for seed, stream in itertools.product([0, 1, 2, 3], [0, 1, 2]):
        values = table(seed, stream, 20, 20).flatten().tolist()
        assert len(set(values)) == 400
        for value in values:
            assert value not in seen, f"(seed, stream) {(seed, stream)} repeats a number of {seen[value]}"
            seen[value] = (seed, stream)


def test_neighbours_are_uncorrelated() -> None:
    base = table(5, 0, 150, 150)
    others = {
        "next position": (base[:, :-1], base[:, 1:]),
        "next row": (base[:-1], base[1:]),
        "next seed": (base, table(6, 0, 150, 150)),
        "next stream": (base, table(5, 1, 150, 150)),
        "next row of the next stream": (base[1:], table(5, 1, 150, 150)[:-1]),
        "previous row of the next stream": (base[:-1], table(5, 1, 150, 150)[1:]),
    }
    for name, (a, b) in others.items():
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()
        assert correlation < 0.03, name
