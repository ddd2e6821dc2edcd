"""The per-row sampler: its distribution, its support, and that a seed means the same token everywhere."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from latentknobs import KnobSpace, apply_options
from latentknobs.engines.transformers import inverse, sampler
from latentknobs.engines.transformers.inverse import draw
from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.likelihood import row_cut
from latentknobs.likelihood.reference import apply_values

ALL = KnobSpace.of({"temperature": [1.0]}, {"top_k": [0]}, {"top_p": [1.0]}, {"min_p": [0.0]})
DRAWS, V = 12_000, 600
SETTINGS = {
    "plain": [1.0, 0, 1.0, 0.0],
    "cold": [0.3, 0, 1.0, 0.0],
    "hot tail": [2.5, 0, 1.0, 0.0],
    "top-k": [1.0, 7, 1.0, 0.0],
    "top-k beyond the best": [2.0, 400, 1.0, 0.0],
    "top-p": [0.7, 0, 0.8, 0.0],
    "hot top-p": [2.0, 0, 0.95, 0.0],
    "very hot top-p": [5.0, 0, 0.9, 0.0],
    "min-p": [1.0, 0, 1.0, 0.05],
    "hot min-p": [3.0, 0, 1.0, 0.1],
    "all": [1.3, 40, 0.9, 0.02],
    "greedy": [0.0, 0, 1.0, 0.0],
}


def logits_of(V: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(1, V) a few likely tokens over a Gaussian bulk."""
    random = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(V, generator=random) * 1.5
    logits_V[torch.randperm(V, generator=random)[: V // 20]] += 4
    return logits_V.to(dtype).unsqueeze(0)


def sampled(logits_1V: Tensor, values: list[float], draws: int, space: KnobSpace = ALL, seed: int = 3) -> Tensor:
    """(draws,) tokens of as many rows."""
    parts = []
    for row_R in torch.arange(draws).split(500):
        value_RJ = torch.tensor([values], dtype=torch.float64).expand(len(row_R), -1)
        logits_RV = logits_1V.expand(len(row_R), -1)
        parts.append(sample_values(logits_RV, space, value_RJ, seed, row_R, torch.full_like(row_R, 5)))
    return torch.cat(parts)


def expected(logits_1V: Tensor, values: list[float], space: KnobSpace = ALL) -> Tensor:
    """(V,) probabilities by the slow reference in float64."""
    return apply_values(logits_1V.double(), space, torch.tensor([values], dtype=torch.float64)).softmax(-1)[0]


def chi_square(token_N: Tensor, prob_V: Tensor) -> float:
    """p-value; tokens expected fewer than 8 times are put together."""
    count_V = torch.bincount(token_N, minlength=len(prob_V)).double()
    want_V = prob_V * len(token_N)
    often_V = want_V >= 8
    found, wanted = [*count_V[often_V].tolist()], [*want_V[often_V].tolist()]
    if want_V[~often_V].sum() > 1:
        found, wanted = [*found, count_V[~often_V].sum().item()], [*wanted, want_V[~often_V].sum().item()]
    scale = sum(found) / sum(wanted)
    return 1.0 if len(found) < 2 else float(stats.chisquare(found, [w * scale for w in wanted]).pvalue)


@pytest.mark.parametrize("name", SETTINGS)
def test_frequencies_match_and_nothing_outside_the_kept_set_is_drawn(name: str) -> None:
    logits_1V = logits_of(V)
    prob_V = expected(logits_1V, SETTINGS[name])
    token_N = sampled(logits_1V, SETTINGS[name], DRAWS)
    assert (prob_V[token_N] > 0).all()
    assert chi_square(token_N, prob_V) > 1e-4
    if name == "greedy":
        assert (token_N == logits_1V.argmax()).all()


@pytest.mark.parametrize("order", ["vllm", "llama.cpp"])
def test_other_orders_and_any_plugin(order: str) -> None:
    """Top-H reads whole rows, locally typical is no prefix of the order, and a temperature stands last in llama.cpp."""
    space = KnobSpace.of(
        {"temperature": [2.0]}, {"top_p": [0.9]}, {"min_p": [0.01]}, {"top_h": [0.8]}, {"typical_p": [0.7]}, order=order
    )
    values = list(space.options[0].values())
    logits_1V = logits_of(V)
    prob_V = expected(logits_1V, values, space)
    token_N = sampled(logits_1V, values, 5_000, space)
    assert (prob_V[token_N] > 0).all() and chi_square(token_N, prob_V) > 1e-4


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0, 3.0])
def test_spaces_that_only_scale(value: float) -> None:
    space = KnobSpace.of({"temperature": [value]})
    logits_1V = logits_of(V)
    token_N = sampled(logits_1V, [value], DRAWS, space)
    assert chi_square(token_N, expected(logits_1V, [value], space)) > 1e-4
    assert value or (token_N == logits_1V.argmax()).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top-k", "hot top-p", "min-p", "all"])
def test_a_million_draws_stay_inside(name: str) -> None:
    logits_1V = logits_of(600, seed=1)
    prob_V = expected(logits_1V, SETTINGS[name])
    assert (prob_V[sampled(logits_1V, SETTINGS[name], 1_000_000)] > 0).all()


@given(st.integers(0, 10**6), st.sampled_from([3, 40, 257, 300, 1_000, 9_000]), st.booleans(), st.booleans())
def test_rows_with_their_own_values_stay_inside_whatever_ties_and_gaps(seed: int, V: int, rounded: bool, sparse: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    N = len(SETTINGS)
    logits_NV = torch.randn(N, V, generator=random) * 2
    logits_NV = logits_NV.mul(2).round() if rounded else logits_NV
    if sparse:
        logits_NV[:, 1:].masked_fill_(torch.rand(N, V - 1, generator=random) < 0.9, -torch.inf)
    value_NJ = torch.tensor(list(SETTINGS.values()), dtype=torch.float64)
    token_N = sample_values(logits_NV, ALL, value_NJ, seed, torch.arange(N), torch.arange(N))
    kept_NV = apply_values(logits_NV, ALL, value_NJ)
    assert kept_NV.gather(-1, token_N.unsqueeze(-1)).isfinite().all()
    assert token_N[-1] == logits_NV[-1].argmax()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_seed_gives_each_row_its_token_whatever_the_batch(dtype: torch.dtype) -> None:
    value_NJ = torch.tensor(list(SETTINGS.values()), dtype=torch.float64).repeat(4, 1)
    N = len(value_NJ)
    logits_NV = torch.cat([logits_of(3_000, seed, dtype) for seed in range(N)])
    row_N, position_N = torch.arange(N) * 7, torch.arange(N) % 5
    together_N = sample_values(logits_NV, ALL, value_NJ, 1, row_N, position_N)
    back_N = sample_values(logits_NV.flip(0), ALL, value_NJ.flip(0), 1, row_N.flip(0), position_N.flip(0)).flip(0)
    alone = [
        sample_values(logits_NV[n : n + 1], ALL, value_NJ[n : n + 1], 1, row_N[n : n + 1], position_N[n : n + 1])
        for n in range(N)
    ]
    strided_NV = torch.cat([logits_NV, logits_NV], 1)[:, : logits_NV.shape[1]]
    assert torch.equal(together_N, back_N) and torch.equal(together_N, torch.cat(alone))
    assert torch.equal(together_N, sample_values(strided_NV, ALL, value_NJ, 1, row_N, position_N))
    assert not torch.equal(together_N, sample_values(logits_NV, ALL, value_NJ, 2, row_N, position_N))


@pytest.mark.parametrize("order", ["transformers", "vllm", "llama.cpp"])
def test_rows_on_another_device_get_the_same_tokens(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step does on a GPU, here: one transfer of what the host needs, and whole rows stay where they are."""
    space = KnobSpace.of(
        {"temperature": [0, 0.6, 1, 2.5]}, {"top_k": [0, 9, 400]}, {"top_p": [0.8, 1]}, {"min_p": [0, 0.05]}, order=order
    )
    scaling = KnobSpace.of({"temperature": [0, 0.6, 1]})
    logits_NV = torch.cat([logits_of(2_000, seed, torch.float64) for seed in range(space.K)])
    key_N = torch.arange(space.K)

    def tokens(of: KnobSpace) -> Tensor:
        return sample_values(logits_NV, of, of.values_KJ()[key_N % of.K], 4, key_N, key_N)

    here = [tokens(space), tokens(scaling)]
    warped_NV = apply_options(logits_NV, space, key_N)
    for module in (row_cut, inverse, sampler):
        monkeypatch.setattr(module, "host_sees", lambda tensor: False)
    assert all(torch.equal(one, other) for one, other in zip(here, [tokens(space), tokens(scaling)], strict=True))
    assert torch.equal(warped_NV, apply_options(logits_NV, space, key_N))


def test_equal_logits_go_by_index() -> None:
    logits_NV = torch.zeros(64, 5_000)
    logits_NV[:, 1_000:] = -1.0
    greedy = sample_values(
        logits_NV, ALL, torch.tensor([SETTINGS["greedy"]]).expand(64, -1), 0, torch.arange(64), torch.arange(64)
    )
    assert (greedy == 0).all()
    kept = sample_values(logits_NV, ALL, torch.tensor([[1.0, 3, 1.0, 0.0]]).expand(64, -1), 0, torch.arange(64), torch.arange(64))
    assert (kept < 1_000).all() and len(kept.unique()) > 30, "all tokens that tie with the third are kept"


def test_the_common_case_never_looks_at_a_whole_row(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_1V, settings = logits_of(4_000), [0.8, 50, 0.9, 0.02]
    before_N = sampled(logits_1V, settings, 500)
    monkeypatch.setattr(sampler, "draw", lambda *_: pytest.fail("looked at a whole row"))
    monkeypatch.setattr(sampler.reference, "apply_values", lambda *_: pytest.fail("looked at a whole row"))
    monkeypatch.setattr(row_cut.Cut, "_total", lambda *_: pytest.fail("summed a whole row"))
    assert torch.equal(sampled(logits_1V, settings, 500), before_N)


@given(st.integers(1, 3_000), st.integers(0, 10**6))
def test_drawing_from_whole_rows_is_the_inverse_cdf(V: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits_NV = (torch.randn(5, V, generator=random, dtype=torch.float64) * 3).masked_fill(
        torch.rand(5, V, generator=random) < 0.5, -torch.inf
    )
    logits_NV[:, V // 2] = 0.0
    u_N = torch.rand(5, generator=random, dtype=torch.float64)
    slow_N = (logits_NV.softmax(-1).cumsum(-1) <= u_N.unsqueeze(-1)).sum(-1)
    assert torch.equal(draw(logits_NV, u_N), slow_N)
    with patch.object(inverse, "host_sees", lambda tensor: False):
        assert torch.equal(draw(logits_NV, u_N), slow_N)
    for edge in (0.0, 1.0 - 2.0**-53, 1.0):
        token_N = draw(logits_NV, torch.full((5,), edge, dtype=torch.float64))
        assert logits_NV.gather(-1, token_N.unsqueeze(-1)).isfinite().all()


def test_where_rows_are_not_looked_at_a_row_of_nan_gives_a_token_of_the_vocabulary() -> None:
    logits_NV = torch.zeros(2, 9).masked_fill(torch.tensor([[True], [False]]), torch.nan)
    with patch.object(inverse, "host_sees", lambda tensor: False), patch.object(inverse, "checked", lambda logits_NV: logits_NV):
        assert (draw(logits_NV, torch.full((2,), 0.5, dtype=torch.float64)) < 9).all()


def test_options_mean_what_the_likelihood_means() -> None:
    space = KnobSpace.of({"temperature": [0.0, 0.7, 1.3], "top_k": [0, 9]})
    logits_1V = logits_of(900)
    for k, value_J in enumerate(space.values_KJ().tolist()):
        prob_V = apply_options(logits_1V.double(), space, torch.tensor([k])).softmax(-1)[0]
        assert chi_square(sampled(logits_1V, value_J, 4_000, space), prob_V) > 1e-4
