"""Masses by powers of one exponential against the obvious sum, and how few exponentials there are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentknobs.likelihood import masses, powers

DEFAULT = (0.2, 0.4, 0.6, 0.8, 1.0)
TEMPERATURES = st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 0.3 * 2, 3.0, 17.0, 0.123])


@settings(max_examples=60)
@given(
    temperatures=st.lists(TEMPERATURES, min_size=1, max_size=8),
    V=st.sampled_from([1, 3, 40, 700]),
    scale=st.sampled_from([0.0, 1.0, 30.0, 400.0]),
    seed=st.integers(0, 10**6),
)
def test_masses_equal_the_obvious_sum(temperatures: list[float], V: int, scale: float, seed: int) -> None:
    """Equal temperatures, unrelated ones, removed tokens and pieces of rows included."""
    random = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(5, V, generator=random, dtype=torch.float64) * scale
    gone_NV = torch.rand(5, V, generator=random) < 0.3
    gone_NV[:, 0] = False
    logits_NV = logits_NV.masked_fill(gone_NV, -torch.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masses, "WORK", 64)
        best_N, log_mass_NQ = masses.log_masses(logits_NV, temperatures)
    gap_NV = logits_NV - logits_NV.amax(-1, keepdim=True)
    slow_NQ = torch.stack([(gap_NV / temperature).logsumexp(-1) for temperature in temperatures], -1)
    assert torch.equal(best_N, logits_NV.amax(-1))
    assert (log_mass_NQ - slow_NQ).abs().max() <= 1e-9


@pytest.mark.parametrize("scale", [2.0, 6.0])
def test_float32_masses_where_cold_temperatures_underflow(scale: float) -> None:
    logits_NV = torch.randn(8, 30_000, generator=torch.Generator().manual_seed(0)) * scale
    logits_NV[:, 7] += 18  # then exp(gap / 0.2) of most tokens is too small to be a normal number
    gap_NV = logits_NV.double() - logits_NV.double().amax(-1, keepdim=True)
    slow_NQ = torch.stack([(gap_NV / temperature).logsumexp(-1) for temperature in DEFAULT], -1)
    assert (masses.log_masses(logits_NV, DEFAULT)[1] - slow_NQ).abs().max() <= 5e-5


def test_the_default_grid_takes_one_exponential_and_ten_products() -> None:
    (family,) = powers.families(DEFAULT)
    assert family.unit == pytest.approx(12)
    assert family.wanted == {12: [4], 15: [3], 20: [2], 30: [1], 60: [0]}
    assert len(family.products) == 10
    assert powers.slots(DEFAULT) <= 3


@given(temperatures=st.lists(TEMPERATURES, min_size=1, max_size=8))
def test_every_temperature_belongs_to_one_family_and_no_power_is_large(temperatures: list[float]) -> None:
    found = powers.families(tuple(temperatures))
    assert sorted(q for family in found for qs in family.wanted.values() for q in qs) == list(range(len(temperatures)))
    for family in found:
        known = {1}
        for n, factors in family.products:
            assert all(factor.power in known for factor in factors)
            assert n == (2 * factors[0].power if len(factors) == 1 else sum(factor.power for factor in factors))
            known.add(n)
        assert set(family.wanted) <= known and max(known) <= powers.LARGEST
        for n, qs in family.wanted.items():
            assert all(family.unit / n == pytest.approx(temperatures[q], rel=1e-14) for q in qs)
