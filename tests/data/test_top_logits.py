"""Cached logits: exact where all are kept, and elsewhere within the bound that the module states."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import KnobSpace
from latentknobs.data.columns import Reading, row_bytes
from latentknobs.data.rollouts import Rollout
from latentknobs.data.top_logits import compress, group_edges, group_sizes, top_logits, unpack
from latentknobs.errors import UnreachableTokenError
from latentknobs.knobs.columns import Columns
from latentknobs.likelihood import reference
from latentknobs.likelihood.soft import Target, soft_logps
from latentknobs.tensors import pick

V, N, ALPHA = 60, 4, 30.0
SCALE, BOTH = KnobSpace.of("temperature"), KnobSpace.of("temperature", "top_p")
temperatures, shares, mosts = st.floats(0.3, 3.0), st.floats(0.2, 0.99), st.integers(1, 70)


def rows(seed: int, sharp: float) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits_NV = sharp * torch.randn(N, V, generator=draw).double()
    return logits_NV, torch.randint(V, (N,), generator=draw)


def spreads(logits_NV: Tensor, most: int) -> Tensor:
    """(N,) the widest group of each row."""
    sorted_NV = logits_NV.sort(-1, descending=True).values
    widths = [sorted_NV[:, start] - sorted_NV[:, end - 1] for start, end in pairwise(group_edges(V, most))]
    return torch.stack(widths).amax(0) if widths else torch.zeros(N).double()


def exact(logits_NV: Tensor, target_N: Tensor, space: KnobSpace, value_NJ: Tensor) -> Tensor:
    row, logit_N = Columns.of(logits_NV), pick(logits_NV, target_N)
    return soft_logps(row, Target(logit_N, (row.logit_NC > logit_N.unsqueeze(-1)).sum(-1)), space, value_NJ, ALPHA)


@given(st.integers(0, 10**6), st.floats(0.2, 4), temperatures, mosts)
def test_scaled_likelihoods_are_within_the_stated_bound(seed: int, sharp: float, temperature: float, most: int) -> None:
    logits_NV, target_N = rows(seed, sharp)
    value_NJ, b = torch.full((N, 1), temperature).double(), 1 / temperature
    found_N = soft_logps(*compress(logits_NV, target_N, most), SCALE, value_NJ, ALPHA)
    expected_N = pick(reference.apply_values(logits_NV, SCALE, value_NJ).log_softmax(-1), target_N)
    bound_N = abs(b * (1 - b)) * spreads(logits_NV, most).square() / 8
    assert ((found_N - expected_N).abs() <= bound_N + 1e-9).all()


@given(st.integers(0, 10**6), st.floats(0.2, 4), temperatures, shares, mosts)
def test_cut_likelihoods_are_within_the_stated_bound(
    seed: int, sharp: float, temperature: float, share: float, most: int
) -> None:
    """Scaling is wrong by e; so are masses, by exp(e) - 1; and a cut within a group by half of it. The target and the sum err."""
    logits_NV, target_N = rows(seed, sharp)
    value_NJ, b = torch.tensor([[temperature, share]] * N).double(), 1 / temperature
    columns, target = compress(logits_NV, target_N, most)
    scaling_N = abs(b * (1 - b)) * spreads(logits_NV, most).square() / 8
    groups_NC = Columns(columns.logit_NC * b, columns.count_C).mass_NC * ((columns.counts_C > 1).double())
    cut_N = ALPHA * (groups_NC.amax(-1) * scaling_N.exp() / 2 + 2 * (2 * scaling_N).expm1())
    found_N = soft_logps(columns, target, BOTH, value_NJ, ALPHA)
    assert ((found_N - exact(logits_NV, target_N, BOTH, value_NJ)).abs() <= scaling_N + 2 * cut_N + 1e-9).all()


@given(st.integers(0, 10**6), st.floats(0.2, 4), temperatures, st.floats(0.2, 3), mosts)
def test_the_cut_of_top_n_sigma_is_within_the_stated_bound(
    seed: int, sharp: float, temperature: float, n: float, most: int
) -> None:
    logits_NV, target_N = rows(seed, sharp)
    knob, n_N = KnobSpace.of("top_n_sigma:0.5,3").knobs[0], torch.full((N,), n).double()
    row, (columns, _) = Columns.of(logits_NV.log_softmax(-1)), compress(logits_NV, target_N, most)
    exact_NV = knob.excess(Columns(row.logit_NC / temperature), n_N)  # type: ignore[attr-defined]
    found_NC = knob.excess(Columns(columns.logit_NC / temperature, columns.count_C), n_N)  # type: ignore[attr-defined]
    found_NV = found_NC.repeat_interleave(columns.counts_C.long(), -1)
    is_grouped_V = columns.counts_C.repeat_interleave(columns.counts_C.long()) > 1
    bound_NV = (n + is_grouped_V) * spreads(logits_NV, most).unsqueeze(-1) / temperature
    assert ((found_NV - exact_NV).abs() <= bound_NV + 1e-9).all()


@given(st.integers(0, 10**6), temperatures, shares)
def test_all_logits_are_exact(seed: int, temperature: float, share: float) -> None:
    logits_NV, target_N = rows(seed, 2.0)
    value_NJ = torch.tensor([[temperature, share]] * N).double()
    found_N = soft_logps(*compress(logits_NV, target_N, V), BOTH, value_NJ, ALPHA)
    torch.testing.assert_close(found_N, exact(logits_NV, target_N, BOTH, value_NJ))


def test_at_temperature_one_nothing_is_lost() -> None:
    logits_NV, target_N = rows(3, 3.0)
    found_N = soft_logps(*compress(logits_NV, target_N, 5), SCALE, torch.ones(N, 1).double(), ALPHA)
    torch.testing.assert_close(found_N, pick(logits_NV.log_softmax(-1), target_N))


def test_a_vocabulary_of_many_tokens_takes_few_numbers() -> None:
    assert len(group_sizes(150_000, 256)) == 256 + 29 and sum(group_sizes(150_000, 256)) == 150_000


@pytest.mark.parametrize("most", [5, V, 200])
def test_the_column_brings_back_what_was_kept_and_its_size_is_known(most: int) -> None:
    logits_NV, target_N = rows(1, 2.0)
    reading = Reading(Rollout(0, tuple(target_N.tolist()), None, ""), logits_NV, torch.zeros(N, 1))
    column = top_logits(most)
    columns, target = unpack(row_NX := column.read(reading))
    expected, expected_target = compress(logits_NV, target_N, most)
    assert torch.equal(columns.logit_NC, expected.logit_NC) and torch.equal(columns.counts_C, expected.counts_C)
    assert torch.equal(target.logit_N, expected_target.logit_N) and torch.equal(target.column_N, expected_target.column_N)
    assert row_bytes({"logits_NX": column}, 3, V) == row_NX.float()[0].nbytes


def test_tokens_that_the_lm_rules_out_are_kept_out_of_the_text_and_of_sums() -> None:
    logits_NV, target_N = rows(2, 2.0)
    logits_NV[:, 1:40] = -torch.inf
    target_N.fill_(0)
    value_NJ = torch.full((N, 1), 0.5).double().requires_grad_()
    logp_N = soft_logps(*compress(logits_NV, target_N, V), SCALE, value_NJ, ALPHA)
    torch.testing.assert_close(logp_N, pick((logits_NV / 0.5).log_softmax(-1), target_N))
    assert torch.autograd.grad(logp_N.sum(), value_NJ)[0].isfinite().all()
    reading = Reading(Rollout(0, (0, 3, 0, 0), None, ""), logits_NV, torch.zeros(N, 1))
    with pytest.raises(UnreachableTokenError, match="Token 1 of the text has probability 0 under the LM itself"):
        top_logits(8).read(reading)
