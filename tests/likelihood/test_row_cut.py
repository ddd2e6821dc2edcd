"""Best tokens against a stable sort; cutoffs read off them against the reference, and as they come from a GPU in one transfer."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import KnobSpace
from latentknobs.likelihood import reference, row_cut
from latentknobs.likelihood.best import TOP, Best, best_tokens, best_values, top_by_key
from latentknobs.likelihood.row_cut import NO_CUTOFF, Cut

WIDTHS = [3, 255, 256, 257, 700, 9_001, 12_300, 26_000]
GRIDS: dict[str, list[float]] = {
    "temperature": [0.0, 0.05, 0.7, 1.0, 3.0], "top_k": [0.0, 1.0, 9.0, 256.0, 400.0], "top_p": [0.3, 0.95, 1.0],
    "min_p": [0.0, 0.05, 1.0], "top_h": [0.5, 1.0], "epsilon_cutoff": [0.0, 0.001],
}  # fmt: skip


def rows_of(seed: int, N: int, V: int, kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    logits_NV = (torch.randn(N, V, generator=random, dtype=torch.float64) * 3).to(dtype)
    if kind == "ties":
        return logits_NV.round()
    if kind == "zeros":
        return logits_NV.clamp(max=0) * (torch.rand(N, V, generator=random) < 0.5)  # 0.0 and -0.0 are equal
    gone_NV = torch.rand(N, V, generator=random) < 0.97
    gone_NV[:, 0] = False
    return logits_NV.masked_fill(gone_NV, -torch.inf) if kind == "gaps" else logits_NV


@given(
    st.integers(0, 10**6), st.sampled_from(WIDTHS), st.sampled_from(["plain", "ties", "zeros", "gaps"]),
    st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_the_best_tokens_are_the_first_of_a_stable_sort(seed: int, V: int, kind: str, dtype: torch.dtype) -> None:
    logits_NV = rows_of(seed, 3, V, kind, dtype)
    value_NV, token_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
    for best in (best_tokens(logits_NV, TOP, greedy=[1]), Best.of(*(part.numpy() for part in top_by_key(logits_NV, TOP)))):
        assert best.token(1, 0) == token_NV[1, 0] and best.value_NM[1, 0] == value_NV[1, 0]
        assert best.tokens([0, 2]).tolist() == token_NV[[0, 2], :TOP].tolist()
        for n in (0, 2):
            assert best.value_NM[n].tolist() == value_NV[n, :TOP].tolist()
            assert [best.token(n, place) for place in range(min(TOP, V))] == token_NV[n, :TOP].tolist()
    assert torch.equal(best_values(logits_NV, TOP), value_NV[:, :TOP])


@pytest.mark.parametrize("V", [10, 300, 26_000, 26_001])
@pytest.mark.parametrize("bad", [0, 9, -1])
def test_rows_that_hold_nan_say_so_and_leave_the_others_alone(V: int, bad: int) -> None:
    logits_NV = rows_of(0, 2, V, "plain", torch.float32)
    logits_NV[0, bad] = torch.nan
    best = best_tokens(logits_NV, TOP)
    assert best.value_NM[0, 0] != best.value_NM[0, 0]
    assert best.tokens([1])[0].tolist() == logits_NV[1].sort(dim=-1, descending=True, stable=True).indices[:TOP].tolist()


cases = given(
    st.integers(0, 10**6), st.sampled_from([40, 256, 257, 900]), st.sampled_from(["plain", "ties", "gaps"]),
    st.permutations(list(GRIDS)), st.integers(1, 4),
)  # fmt: skip


def case(seed: int, V: int, kind: str, order: list[str], J: int) -> tuple[Tensor, KnobSpace, Tensor]:
    """Knobs that see a prefix, the mass and the row, in any order."""
    space = KnobSpace.of({name: GRIDS[name] for name in order[:J]}, order=order[:J])
    value_NJ = space.values_KJ()[torch.randint(space.K, (30,), generator=torch.Generator().manual_seed(seed))]
    return rows_of(seed, 30, V, kind), space, value_NJ.double()


@cases
def test_cutoffs_are_those_of_the_reference(seed: int, V: int, kind: str, order: list[str], J: int) -> None:
    logits_NV, space, value_NJ = case(seed, V, kind, order, J)
    cut = Cut(logits_NV, space, value_NJ)
    kept_NV = reference.apply_values(logits_NV, space, value_NJ).isfinite()
    left_N = logits_NV.isfinite().sum(-1)
    for n, kept in enumerate(kept_NV.sum(-1).tolist()):
        if cut.kept[n] == NO_CUTOFF and n not in cut.undetermined:
            assert kept == left_N[n]
        elif n not in cut.beyond_top or cut.is_whole:
            assert kept == min(cut.kept[n], int(left_N[n])), "a count may run into removed tokens"
        elif n not in cut.undetermined:
            assert kept >= min(cut.M, int(left_N[n]))
    assert cut.is_whole == (V <= TOP)
    assert not (cut.undetermined and cut.is_whole) and not cut.undetermined & cut.greedy


@cases
def test_rows_of_a_gpu_are_cut_in_one_transfer_as_they_are_on_the_host(
    seed: int, V: int, kind: str, order: list[str], J: int
) -> None:
    logits_NV, space, value_NJ = case(seed, V, kind, order, J)
    u_N = torch.rand(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    here = Cut(logits_NV, space, value_NJ, u_N)
    with patch.object(row_cut, "host_sees", lambda tensor: False):
        there = Cut(logits_NV, space, value_NJ, u_N)
    assert (here.kept, here.undetermined, here.greedy) == (there.kept, there.undetermined, there.greedy)
    assert here.u_N.tolist() == there.u_N.tolist() == u_N.tolist()
    (tokens, rest), (their_tokens, their_rest) = here.draw(u_N.tolist()), there.draw(u_N.tolist())
    assert tokens == their_tokens and rest.keys() == their_rest.keys()
    assert all(rest[n] == pytest.approx(their_rest[n], abs=1e-9) for n in rest)


def test_a_cutoff_that_is_one_off_is_noticed() -> None:
    space = KnobSpace.of({"temperature": [0.7]}, {"top_k": [9]})
    logits_NV = rows_of(3, 2, 700, "plain")
    with patch.object(row_cut, "extend_over_ties", lambda sorted_NM, count_NG: count_NG + 1):
        logits_NV[1] = 0.0
        cut = Cut(logits_NV, space, space.values_KJ()[[0, 0]].double())
    kept_N = reference.apply_values(logits_NV, space, space.values_KJ()[[0, 0]]).isfinite().sum(-1)
    assert cut.kept[0] == kept_N[0] and cut.kept[1] != kept_N[1]
