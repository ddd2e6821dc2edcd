"""The fast likelihood tables against the slow reference: masks exactly, values to 1e-9 in float64, a stated bound in float32."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import KnobSpace, Stage, TruncationKnob
from latentknobs.knobs.knob import DecodingKnob
from latentknobs.knobs.space import ORDERS
from latentknobs.likelihood import apply, reference, row_cut, table

FLOAT32_BOUND = 1e-4  # nats; measured below 1e-5 at V = 5,000 and 3e-5 at V = 128,256 (a sum of exponentials in float32)


class LastDigits(TruncationKnob):
    """A third-party knob that reads the whole row: keeps what is above the mean of the finite logits, value times."""

    name: ClassVar[str] = "above_mean"
    stage: ClassVar[Stage] = Stage.MASS
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0, 0.5, 1.0)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        is_left_NV = sorted_NV.isfinite()
        mean_N1 = sorted_NV.masked_fill(~is_left_NV, 0).sum(-1, keepdim=True) / is_left_NV.sum(-1, keepdim=True)
        return (sorted_NV >= sorted_NV[:, :1] + value_N.unsqueeze(-1) * (mean_N1 - sorted_NV[:, :1])).sum(-1)


class EvenTokens(DecodingKnob):
    """Not order-preserving: lowers odd tokens by the value."""

    name: ClassVar[str] = "even"
    stage: ClassVar[Stage] = Stage.SHAPE
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0, 1.5)

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        is_odd_V = torch.arange(logits_NV.shape[-1]) % 2 == 1
        return logits_NV - value_N.unsqueeze(-1) * is_odd_V


GRIDS = {"temperature": [0.0, 0.35, 0.5, 1.0, 1.7], "top_k": [0, 1, 3, 7], "top_p": [0.3, 0.9, 1.0], "min_p": [0.0, 0.05, 0.6]}
SPACES = {order: KnobSpace.of(GRIDS, order=order) for order in ORDERS}
SPACES["backwards"] = KnobSpace.of(GRIDS, order=["min_p", "top_p", "top_k", "temperature"])
SPACES["third party"] = KnobSpace.of({"temperature": [0.0, 0.6, 1.0], "top_k": [0, 5]}, LastDigits(), {"min_p": [0.0, 0.1]})
SPACES["dense inside"] = KnobSpace.of(
    {"temperature": [0.0, 0.6, 1.0], "top_p": [0.8, 1.0], "top_k": [0, 5]},
    EvenTokens(options=(0.0, 1.5)),
    order=["temperature", "even", "top_k", "top_p"],
)
SPACES["dense last"] = KnobSpace.of({"temperature": [0.5, 1.0], "top_p": [0.8, 1.0]}, EvenTokens(options=(0.0, 1.5)))
SPACES["strategies"] = SPACES["transformers"].select(range(1, SPACES["transformers"].K, 7))


def assert_agree(fast_NK: Tensor, slow_NK: Tensor, bound: float) -> None:
    assert fast_NK.dtype == slow_NK.dtype and fast_NK.shape == slow_NK.shape
    assert not fast_NK.isnan().any()
    assert torch.equal(fast_NK.isneginf(), slow_NK.isneginf())
    gap_NK = torch.where(slow_NK.isneginf(), 0.0, fast_NK - slow_NK)
    assert gap_NK.abs().max() <= bound


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits with ties and -inf, sparse or not, and targets among all tokens, removed ones included."""
    V, N = draw(st.sampled_from([1, 2, 5, 17, 60])), draw(st.integers(1, 6))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits_NV = torch.randn(N, V, generator=random, dtype=torch.float64) * draw(st.sampled_from([0.0, 0.1, 2.0, 30.0]))
    if draw(st.booleans()):
        logits_NV = logits_NV.round()
    logits_NV += draw(st.sampled_from([0.0, -300.0, 300.0]))
    gone_NV = torch.rand(N, V, generator=random) < draw(st.sampled_from([0.0, 0.5, 0.95]))
    gone_NV[torch.arange(N), torch.randint(V, (N,), generator=random)] = False
    targets_N = torch.randint(V, (N,), generator=random)
    return logits_NV.masked_fill(gone_NV, -torch.inf), targets_N


@pytest.mark.parametrize("top", [1, 4, 256])
@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=12)
@given(case=rows())
def test_tables_equal_the_reference(name: str, top: int, case: tuple[Tensor, Tensor]) -> None:
    """With a top of 1 or 4 tokens nearly every cut lies beyond it, so that all ways out are taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "TOP", top)
        patch.setattr(table, "CELLS", 3 * top)
        assert_agree(table.option_logps(*case, SPACES[name]), reference.option_logps(*case, SPACES[name]), 1e-9)


@pytest.mark.parametrize("name", ["transformers", "vllm", "llama.cpp", "third party"])
@pytest.mark.parametrize("V", [700, 25_000])
def test_large_vocabularies_where_the_top_comes_from_a_tournament(name: str, V: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(5, V, generator=random, dtype=torch.float64) * torch.tensor([[0.2], [1], [2], [3], [6]])
    logits_NV[1] = logits_NV[1].mul(4).round().div(4)
    targets_N = torch.cat([logits_NV[:2].argmax(-1), logits_NV[2:].softmax(-1).multinomial(1, generator=random)[:, 0]])
    assert_agree(
        table.option_logps(logits_NV, targets_N, SPACES[name]), reference.option_logps(logits_NV, targets_N, SPACES[name]), 1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_logits_within_the_stated_bound(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    logits_NV = (torch.randn(12, 5_000, generator=random) * 3).to(dtype)
    targets_N = logits_NV.float().softmax(-1).multinomial(1, generator=random)[:, 0]
    slow_NK = reference.option_logps(logits_NV, targets_N, SPACES["transformers"])
    assert_agree(table.option_logps(logits_NV, targets_N, SPACES["transformers"]), slow_NK, FLOAT32_BOUND)


def test_temperatures_alone_never_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("best_values", "sort_descending"):
        monkeypatch.setattr(table, name, lambda *_: pytest.fail("sorted"))
    logits_NV = torch.randn(4, 90, dtype=torch.float64)
    targets_N = torch.tensor([3, 0, 89, int(logits_NV[3].argmax())])
    space = KnobSpace.of("temperature")
    assert_agree(table.option_logps(logits_NV, targets_N, space), reference.option_logps(logits_NV, targets_N, space), 1e-12)


def test_only_rows_whose_cut_lies_beyond_the_top_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_rows: list[int] = []
    original = table.sort_descending

    def watched(value_NV: Tensor) -> Tensor:
        sorted_rows.append(len(value_NV))
        return original(value_NV)

    monkeypatch.setattr(table, "sort_descending", watched)
    logits_NV = torch.randn(6, 2_000, dtype=torch.float64)
    logits_NV[:4] *= 20
    table.option_logps(logits_NV, logits_NV.argmax(-1), SPACES["transformers"])
    assert sum(sorted_rows) == 2


def test_a_row_knob_needs_no_more_than_its_own_options_to_be_sorted() -> None:
    space = SPACES["third party"]
    assert space.knobs[[k.name for k in space.knobs].index("above_mean")].sees == "row"
    assert {len(chain) for chain in table._mass_chains(space)[0]} == {0, 1}


def test_rows_and_no_gradient() -> None:
    logits_NV = torch.randn(3, 8, requires_grad=True)
    table_NK = table.option_logps(logits_NV, torch.tensor([1, 2, 3]), SPACES["transformers"])
    assert not table_NK.requires_grad
    assert table.option_logps(logits_NV[:0], torch.tensor([], dtype=torch.long), SPACES["vllm"]).shape == (0, SPACES["vllm"].K)
    strided_NV = torch.randn(8, 3).T
    assert_agree(
        table.option_logps(strided_NV, torch.tensor([0, 1, 2]), SPACES["vllm"]),
        reference.option_logps(strided_NV, torch.tensor([0, 1, 2]), SPACES["vllm"]),
        FLOAT32_BOUND,
    )


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=15)
@given(case=rows(), seed=st.integers(0, 10**6))
def test_warped_logits_equal_the_reference(name: str, case: tuple[Tensor, Tensor], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_cut, "TOP", 1 + seed % 9)
        logits_NV, space = case[0], SPACES[name]
        option_N = torch.randint(space.K, (len(logits_NV),), generator=torch.Generator().manual_seed(seed))
        fast_NV, slow_NV = apply.apply_options(logits_NV, space, option_N), reference.apply_options(logits_NV, space, option_N)
        assert torch.equal(fast_NV, slow_NV)


def test_gradients_pass_through_warped_logits() -> None:
    logits_NV = torch.randn(2, 9, requires_grad=True)
    space = KnobSpace.of({"temperature": [0.5]}, {"top_k": [3]})
    warped_NV = apply.apply_options(logits_NV, space, torch.zeros(2, dtype=torch.long))
    warped_NV.log_softmax(-1).amax(-1).sum().backward()
    assert logits_NV.grad is not None and ((logits_NV.grad != 0).sum(-1) == 3).all()
