"""Masses of whole rows against the obvious sum, and rows that are not distributions."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import KnobSpace, apply_options, option_logps
from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.errors import LatentKnobsError, LogitsError
from latentknobs.likelihood import apply_values, reference, rows

TEMPERATURES = st.sampled_from([1e-3, 0.1, 0.2, 1 / 3, 0.5, 0.7, 1.0, 1.5, 3.0, 17.0])
SCALE = KnobSpace.of("temperature:0,0.5,1")
CUT = KnobSpace.of("temperature:0,0.5,1", "top_k:0,3", "top_p:0.5,1", "min_p:0,0.1")
DENSE = KnobSpace.of("temperature:0,0.5,1", "typical_p:0.5,1")
BROKEN = {"NaN": torch.nan, "+inf": torch.inf, "-inf": -torch.inf}


@settings(max_examples=60)
@given(
    temperatures=st.lists(TEMPERATURES, max_size=5),
    V=st.sampled_from([1, 3, 40, 700]),
    scale=st.sampled_from([0.0, 1.0, 30.0, 400.0]),
    seed=st.integers(0, 10**6),
)
def test_masses_equal_the_obvious_sum(temperatures: list[float], V: int, scale: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(5, V, generator=random, dtype=torch.float64) * scale
    gone_NV = torch.rand(5, V, generator=random) < 0.3
    gone_NV[:, 0] = False
    logits_NV = logits_NV.masked_fill(gone_NV, -torch.inf)
    best_N = logits_NV.amax(-1)
    gap_NV = logits_NV - best_N.unsqueeze(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "WORK", 64)
        mass_NQ = rows.masses(logits_NV, best_N, temperatures)
        for temperature, mass_N in zip(temperatures, mass_NQ.unbind(-1), strict=True):
            slow_N = (gap_NV / temperature).exp().sum(-1)
            own_R = rows.own_masses(logits_NV, torch.tensor([4, 1]), torch.full((5,), temperature, dtype=torch.float64))
            assert torch.allclose(mass_N, slow_N, rtol=1e-12)
            assert torch.allclose(own_R, slow_N[[4, 1]], rtol=1e-12)


@pytest.mark.parametrize("scale", [2.0, 6.0])
def test_float32_masses_where_cold_temperatures_underflow(scale: float) -> None:
    logits_NV = torch.randn(8, 30_000, generator=torch.Generator().manual_seed(0)) * scale
    logits_NV[:, 7] += 18  # then exp(gap / 0.2) of most tokens is too small to be a normal number
    temperatures, best_N = (0.2, 0.4, 0.6, 0.8, 1.0), logits_NV.amax(-1)
    gap_NV = logits_NV.double() - best_N.double().unsqueeze(-1)
    slow_NQ = torch.stack([(gap_NV / temperature).exp().sum(-1) for temperature in temperatures], -1)
    assert (rows.masses(logits_NV, best_N, temperatures) / slow_NQ - 1).abs().max() <= 5e-6


def _tables(logits_NV: Tensor, space: KnobSpace) -> Tensor:
    return option_logps(logits_NV, torch.zeros(len(logits_NV), dtype=torch.long), space)


def _sampled(logits_NV: Tensor, space: KnobSpace) -> Tensor:
    row_N = torch.arange(len(logits_NV))
    return sample_values(logits_NV, space, space.values_KJ()[row_N % space.K], 0, row_N, row_N)


def _options(logits_NV: Tensor, space: KnobSpace) -> Tensor:
    return apply_options(logits_NV, space, torch.arange(len(logits_NV)) % space.K)


def _values(logits_NV: Tensor, space: KnobSpace) -> Tensor:
    return apply_values(logits_NV, space, space.values_KJ()[torch.arange(len(logits_NV)) % space.K])


@pytest.mark.parametrize("call", [_tables, _sampled, _options, _values])
@pytest.mark.parametrize("space", [SCALE, CUT, DENSE])
@pytest.mark.parametrize("V", [1, 40, 2_001])
@pytest.mark.parametrize("bad", BROKEN)
def test_a_row_that_is_not_a_distribution_is_named(
    call: Callable[[Tensor, KnobSpace], Tensor], space: KnobSpace, V: int, bad: str
) -> None:
    """Whatever its option: temperature 0, cut, and uncut; one bad logit anywhere is enough, except for -inf."""
    good_NV = torch.randn(space.K, V, generator=torch.Generator().manual_seed(0)) * 3
    for n in range(0, space.K, 5):
        logits_NV = good_NV.clone()
        logits_NV[n, slice(None) if bad == "-inf" else V - 1] = BROKEN[bad]
        with pytest.raises(LogitsError, match=rf"Row {n} of the logits is not a distribution: it .*{re.escape(bad)}"):
            call(logits_NV, space)


def test_options_and_targets_that_do_not_exist_are_refused() -> None:
    logits_NV = torch.randn(3, 7)
    for apply in (apply_options, reference.apply_options):
        for option in (-1, CUT.K):
            with pytest.raises(LogitsError, match=f"Option {option} is not one of the {CUT.K}"):
                apply(logits_NV, CUT, torch.tensor([0, option, 1]))
    for target in (-100, 7):
        with pytest.raises(LogitsError, match=f"Target {target} is not one of the 7 tokens"):
            option_logps(logits_NV, torch.tensor([0, 1, target]), SCALE)
    assert issubclass(LogitsError, LatentKnobsError) and issubclass(LogitsError, ValueError)


@pytest.mark.parametrize("order", ["transformers", "vllm", "llama.cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_huge_logits_and_tiny_temperatures_overflow_nowhere(order: str, dtype: torch.dtype) -> None:
    space = KnobSpace.of({"temperature": [0.0, 1e-40, 1e-25, 0.5, 1.0, 2.0], "top_k": [0, 2], "top_p": [0.9, 1.0]}, order=order)
    logits_NV = torch.tensor([[3e38, -3e38, 0.0], [-3e38, -2.9e38, -3.1e38], [1.0, 5.0, 2.0], [0.0, -torch.inf, 3e38]]).to(dtype)
    for n, row_V in enumerate(logits_NV):
        gap_V = row_V.double() - row_V.double().max()
        for k, option in enumerate(space.options):
            option_1, row_1V = torch.tensor([k]), row_V.unsqueeze(0)
            warped_V = apply_options(row_1V, space, option_1)[0].log_softmax(-1)
            table_V = torch.cat([option_logps(row_1V, torch.tensor([v]), space)[0, k : k + 1] for v in range(3)])
            slow_V = torch.cat([reference.option_logps(row_1V, torch.tensor([v]), space)[0, k : k + 1] for v in range(3)])
            assert not warped_V.isnan().any() and torch.allclose(warped_V.exp(), table_V.exp(), atol=1e-6)
            assert torch.allclose(table_V.exp(), slow_V.exp(), atol=1e-6)
            if option["top_k"] == 0 and option["top_p"] == 1:
                cold = option["temperature"] < 1e-30
                right_V = (gap_V == 0).double() if cold else (gap_V / option["temperature"]).softmax(-1)
                assert torch.allclose(table_V.double().exp(), right_V, atol=1e-6)
            assert warped_V[sample_values(row_1V, space, space.values_KJ()[option_1], n, option_1, option_1)].isfinite()


def test_gradients_pass_where_rows_are_shifted() -> None:
    logits_NV = torch.tensor([[3e38, 3e38, 0.0], [1.0, 2.0, 0.0]], requires_grad=True)
    apply_options(logits_NV, CUT, torch.tensor([CUT.K - 1, 0])).log_softmax(-1)[:, 0].sum().backward()
    assert logits_NV.grad is not None and logits_NV.grad.isfinite().all() and logits_NV.grad[0, 0] != 0


ROWS = torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("logits_NV", "index_N", "says"),
    [
        (ROWS[0], torch.tensor([0]), r"The logits are torch.float32 \(5,\), not a tensor \(N, V\)"),
        (ROWS.numpy(), torch.tensor([0]), "The logits are a ndarray"),
        (ROWS, torch.tensor([0, 1]), r"The (options|targets) are torch.int64 \(2,\); give 3 whole numbers"),
        (ROWS, torch.zeros(3), r"are torch.float32 \(3,\)"),
        (ROWS, [0, 1, 2], "are a list"),
        (ROWS, None, "are a NoneType"),
    ],
)
def test_rows_and_indices_that_do_not_fit(logits_NV, index_N, says):
    space = KnobSpace.of("temperature")
    with pytest.raises(LogitsError, match=says):
        apply_options(logits_NV, space, index_N)
    with pytest.raises(LogitsError, match=says):
        option_logps(logits_NV, index_N, space)
