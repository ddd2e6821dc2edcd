"""Best tokens and cuts on the host, against a stable sort and against the way that asks for no value (as on a GPU)."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import KnobSpace, TruncationKnob
from latentknobs.likelihood import cut as cut_module
from latentknobs.likelihood.cut import TOP, Cut, cut_rows, told
from latentknobs.likelihood.host import HostCut
from latentknobs.likelihood.sorting import best_by_bound, top_tokens

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
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_the_best_tokens_are_the_first_of_a_stable_sort(seed: int, V: int, kind: str, dtype: torch.dtype) -> None:
    logits_NV = rows_of(seed, 3, V, kind, dtype)
    best = best_by_bound(logits_NV, TOP, greedy=[1])
    wide_NV = logits_NV.to(torch.promote_types(dtype, torch.float32))
    value_NV, token_NV = wide_NV.sort(dim=-1, descending=True, stable=True)
    for n in (0, 2):
        assert best.value_NM[n].tolist() == value_NV[n, :TOP].tolist()
        assert best.tokens([n])[0].tolist() == token_NV[n, :TOP].tolist()
        assert [best.token(n, place) for place in range(min(TOP, V))] == token_NV[n, :TOP].tolist()
    assert best.token(1, 0) == token_NV[1, 0] and (best.value_NM[1] == value_NV[1, 0].item()).all()
    for found_NM, sorted_NV in zip(top_tokens(logits_NV, TOP), (value_NV, token_NV), strict=True):
        assert torch.equal(found_NM, sorted_NV[:, :TOP])


@pytest.mark.parametrize("V", [10, 300, 26_000])
@pytest.mark.parametrize("bad", [1, 299, 26_000])
def test_rows_that_hold_nan_do_not_stop_the_others(V: int, bad: int) -> None:
    """What a model makes of padding; nobody reads the token."""
    logits_NV = rows_of(0, 2, V, "plain", torch.float32)
    logits_NV[0, :bad] = torch.nan
    best = best_by_bound(logits_NV, TOP)
    assert all(0 <= best.token(0, place) < V for place in (0, min(V, TOP) - 1))
    assert best.tokens(range(2))[1].tolist() == logits_NV[1].sort(dim=-1, descending=True, stable=True).indices[:TOP].tolist()


def without_asking(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor) -> Cut:
    with patch.object(cut_module, "host_sees", lambda tensor: False):
        return cut_rows(logits_NV, space, value_NJ)


def disagreements(one: Cut, other: Cut) -> list[str]:
    """What differs between two cuts; counts beyond the top mean no more than that."""
    N = len(one.token_NM)
    none_N, found = torch.zeros(N, dtype=torch.bool), []
    for name in ("is_unknown_N", "is_greedy_N", "is_open_N"):
        a, b = (none_N if (mask := getattr(cut, name)) is None else mask for cut in (one, other))
        found += [] if torch.equal(a, b) else [name]
    for name in ("count_N", "token_NM", "top_NM", "temperature_N", "is_uncut_N"):
        found += [] if torch.equal(getattr(one, name), getattr(other, name)) else [name]
    return found


@given(
    st.integers(0, 10**6), st.sampled_from([40, 256, 257, 900]), st.sampled_from(["plain", "ties", "gaps"]),
    st.permutations(list(GRIDS)), st.integers(1, 4),
)  # fmt: skip
def test_cuts_are_those_of_the_way_that_asks_for_nothing(seed: int, V: int, kind: str, order: list[str], J: int) -> None:
    """Knobs that see a prefix, the mass and the row, in any order."""
    space = KnobSpace.of({name: GRIDS[name] for name in order[:J]}, order=order[:J])
    logits_NV = rows_of(seed, 30, V, kind)
    value_NJ = space.values_KJ()[torch.randint(space.K, (30,), generator=torch.Generator().manual_seed(seed))]
    slow = without_asking(logits_NV, space, value_NJ)
    assert not disagreements(cut_rows(logits_NV, space, value_NJ), slow)
    host = HostCut(logits_NV, space, value_NJ, TOP)
    assert host.is_any_open == bool(slow.is_any_open)
    rows = [] if slow.is_open_N is None else slow.is_open_N.nonzero().squeeze(-1).tolist()
    assert host.open_rows == rows
    if rows:
        assert not disagreements(told(host, rows), without_asking(logits_NV[rows], space, value_NJ[rows]))


def test_a_row_told_wrong_is_noticed() -> None:
    space = KnobSpace.of({"temperature": [0.7]}, {"top_k": [9]})
    logits_NV = rows_of(3, 2, 700, "plain")
    right = cut_rows(logits_NV, space, space.values_KJ()[[0, 0]])
    host = HostCut(logits_NV, space, space.values_KJ()[[0, 0]], TOP)
    host.kept[1] += 1
    assert disagreements(told(host, range(2)), right) == ["count_N"]


@given(
    st.integers(0, 10**6), st.sampled_from(["top_k", "top_p", "min_p"]), st.sampled_from(["plain", "ties", "gaps"]),
    st.integers(1, 300), st.floats(0.001, 0.999),
)  # fmt: skip
def test_counts_in_numpy_are_those_of_torch(seed: int, name: str, kind: str, V: int, share: float) -> None:
    """Also where all logits are equal and the mass of some tokens is just what was asked for."""
    knob = KnobSpace.of(name).knobs[0]
    assert isinstance(knob, TruncationKnob)
    logits_NV = rows_of(seed, 5, V, kind)
    logits_NV[0] = 0.0
    sorted_NV = logits_NV.sort(-1, descending=True).values
    for number in (share, 0.5, 0.1, 0.7):
        value_N = torch.full((5,), float(int(number * 50)) if name == "top_k" else number, dtype=torch.float64)
        count_N = torch.from_numpy(knob.kept_on_host(sorted_NV.numpy(), value_N.numpy()))
        assert torch.equal(count_N, knob.kept(sorted_NV, value_N))


def test_another_kept_is_not_counted_by_the_numpy_of_its_base() -> None:
    class OneMore(type(KnobSpace.of("top_k").knobs[0])):  # type: ignore[misc]
        def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
            return value_N.long() + 1

    logits_NV = rows_of(0, 2, 900, "plain")
    space = KnobSpace((OneMore(options=(5,)),), ((0,),), "given")
    assert HostCut(logits_NV, space, space.values_KJ()[[0, 0]], TOP).kept == [6, 6]
