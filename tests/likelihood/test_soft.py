"""Soft cuts: exact scaling, the hard rule in the limit, a gradient everywhere; and the faults of the published formula."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import KnobSpace
from latentknobs.errors import ConfigError, UnreachableTokenError
from latentknobs.knobs.columns import Columns
from latentknobs.knobs.knob import TruncationKnob
from latentknobs.likelihood import reference
from latentknobs.likelihood.soft import Target, check_reachable, check_soft, soft_chain, soft_logps

CUTS = {"top_p": (0.3, 0.9), "min_p": (0.02, 0.5), "top_n_sigma": (0.5, 2.0), "epsilon_cutoff": (0.01, 0.2),
        "eta_cutoff": (0.01, 0.2), "p_less": (0.1, 0.9), "top_h": (0.3, 0.8)}  # fmt: skip
rows = st.integers(0, 10**6).map(lambda seed: torch.randn(3, 17, generator=torch.Generator().manual_seed(seed)).double() * 2)
shares = st.lists(st.floats(0.02, 0.98), min_size=6, max_size=6)


def space_of(*names: str, order: str = "transformers") -> KnobSpace:
    return KnobSpace.of(*({name: [0.5, 2.0] if name == "temperature" else list(CUTS[name])} for name in names), order=order)


def values_of(space: KnobSpace, share: list[float], N: int = 3) -> Tensor:
    """(N, J) values within the grids, other ones in each row."""
    columns = [
        [low + (high - low) * share[(n + j) % len(share)] for n in range(N)]
        for j, (low, high) in enumerate((knob.options[0], knob.options[-1]) for knob in space.knobs)
    ]
    return torch.tensor(columns, dtype=torch.float64).T.contiguous()


def soft(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, alpha: float = 30.0) -> Tensor:
    """(N, V) log-probabilities in the order of the tokens."""
    order_NV = logits_NV.argsort(dim=-1, descending=True, stable=True)
    logp_NV = soft_chain(Columns.of(logits_NV), space, value_NJ, alpha)[0].log_softmax(-1)
    return torch.zeros_like(logp_NV).scatter(-1, order_NV, logp_NV)


def published(logits_V: Tensor, top_p: Tensor, alpha: float = 30.0) -> Tensor:
    """Soft top-p of arXiv 2510.26697, restated: inclusive cumulative mass, and an epsilon of 1e-9 in the sum."""
    p_V, order_V = logits_V.softmax(-1).sort(descending=True)
    mask_V = torch.zeros_like(p_V).scatter(0, order_V, (-alpha * (p_V.cumsum(0) - top_p).clamp(min=0)).exp())
    masked_V = logits_V.softmax(-1) * mask_V
    return masked_V / (masked_V.sum() + 1e-9)


@given(logits_NV=rows, share=shares)
def test_scaling_is_exact(logits_NV: Tensor, share: list[float]) -> None:
    space = space_of("temperature")
    value_NJ = values_of(space, share)
    expected_NV = reference.apply_values(logits_NV, space, value_NJ).log_softmax(-1)
    torch.testing.assert_close(soft(logits_NV, space, value_NJ), expected_NV)


@pytest.mark.parametrize("names", [[name] for name in CUTS] + [
    ["temperature", "top_p"], ["temperature", "top_n_sigma", "top_p", "min_p"], ["min_p", "temperature", "epsilon_cutoff"],
])  # fmt: skip
@pytest.mark.parametrize("order", ["transformers", "llama.cpp"])
@given(logits_NV=rows, share=shares)
def test_a_soft_cut_tends_to_the_hard_one(names: list[str], order: str, logits_NV: Tensor, share: list[float]) -> None:
    space = space_of(*names, order=order)
    value_NJ = values_of(space, share)
    row = Columns.of(logits_NV)
    steps = [KnobSpace(space.knobs[:j], space.grid_KJ) for j in range(len(space.knobs))]
    for j, knob in enumerate(space.knobs):  # not where rounding decides
        if isinstance(knob, TruncationKnob):
            before = Columns(soft_chain(row, steps[j], value_NJ[:, :j], 1e6)[0].clamp(min=-1e6)) if j else row
            assume(knob.excess(before, value_NJ[:, j]).abs().min() > 1e-3)
    hard_NV = reference.apply_values(logits_NV, space, value_NJ).log_softmax(-1)
    torch.testing.assert_close(soft(logits_NV, space, value_NJ, 1e6).exp(), hard_NV.exp(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CUTS)
@given(logits_NV=rows, share=shares, alpha=st.floats(0.1, 1e4))
def test_it_sums_to_one_and_never_orders_tokens_anew(name: str, logits_NV: Tensor, share: list[float], alpha: float) -> None:
    space = space_of("temperature", name)
    logp_NV = soft(logits_NV, space, values_of(space, share), alpha)
    torch.testing.assert_close(logp_NV.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    sorted_NV = logp_NV.gather(-1, logits_NV.argsort(dim=-1, descending=True))
    assert (sorted_NV.diff(dim=-1) <= 1e-9).all()


@given(logits_NV=rows, share=st.floats(0.3, 0.999))
def test_top_p_has_a_gradient_wherever_the_best_token_reaches_it(logits_NV: Tensor, share: float) -> None:
    space, sharp_NV = space_of("top_p"), logits_NV * 3
    p_max_N = sharp_NV.softmax(-1).amax(-1)
    assume(bool((p_max_N < 1 - 1e-6).all()))
    value_NJ = (p_max_N * share).unsqueeze(-1).requires_grad_()
    row = Columns.of(sharp_NV)
    for place in (0, 1):  # the likelihood of the best token falls as top_p grows, that of the second rises
        column_N = torch.full((3,), place)
        target = Target(row.logit_NC[:, place], column_N)
        (slope_N1,) = torch.autograd.grad(soft_logps(row, target, space, value_NJ, 30.0).sum(), value_NJ)
        assert ((slope_N1 < 0) if place == 0 else (slope_N1 > 0)).all()


@pytest.mark.parametrize("name", [*CUTS, "temperature"])
@given(logits_NV=rows, share=shares)
def test_the_gradient_is_that_of_differences(name: str, logits_NV: Tensor, share: list[float]) -> None:
    space = space_of(name)
    value_NJ, row = values_of(space, share), Columns.of(logits_NV)
    target = Target(row.logit_NC[:, 4], torch.full((3,), 4))
    if name != "temperature":
        assume(space.knobs[0].excess(row, value_NJ[:, 0]).abs().min() > 1e-4)

    def total(value_NJ: Tensor) -> Tensor:
        return soft_logps(row, target, space, value_NJ, 30.0)

    assert torch.autograd.gradcheck(total, value_NJ.requires_grad_())


def test_equal_tokens_stay_equal_as_in_decoding() -> None:
    logits_NV = torch.tensor([[2.0, 1.0, 2.0, 0.0, 1.0]]).double()
    space = space_of("top_p")
    logp_V = soft(logits_NV, space, torch.tensor([[0.3]]).double(), 1e6)[0]
    assert logp_V[0] == logp_V[2] and logp_V[1] == logp_V[4]
    hard_NV = reference.apply_values(logits_NV, space, torch.tensor([[0.3]]).double()).log_softmax(-1)
    torch.testing.assert_close(logp_V.exp(), hard_NV[0].exp())


@pytest.mark.parametrize("p, top_p", [([0.95, 0.03, 0.01, 0.01], 0.9), ([0.6, 0.2, 0.1, 0.1], 0.5)])
def test_the_published_formula_has_no_gradient_at_confident_tokens_and_ours_has(p: list[float], top_p: float) -> None:
    logits_V, value = torch.tensor(p).double().log(), torch.tensor(top_p).double().requires_grad_()
    (theirs,) = torch.autograd.grad(published(logits_V, value)[0].log(), value)
    (ours,) = torch.autograd.grad(soft(logits_V[None], space_of("top_p"), value.reshape(1, 1))[0, 0], value)
    assert abs(theirs) < 1e-4 and ours < -0.1


def test_the_published_formula_takes_mass_from_the_token_that_crosses_and_ours_keeps_it() -> None:
    logits_V, top_p = torch.tensor([0.5, 0.45, 0.03, 0.02]).double().log(), torch.tensor(0.9).double()
    hard_V = reference.apply_values(logits_V[None], space_of("top_p"), top_p.reshape(1, 1))[0].softmax(-1)
    theirs_V, ours_V = published(logits_V, top_p), soft(logits_V[None], space_of("top_p"), top_p.reshape(1, 1))[0].exp()
    assert hard_V[1] / hard_V[0] == pytest.approx(0.9) == (ours_V[1] / ours_V[0]).item()
    assert theirs_V[1] / theirs_V[0] < 0.25
    first_V = torch.tensor([0.95, 0.03, 0.01, 0.01]).double().log()
    assert published(first_V, top_p)[0] == pytest.approx(0.982, abs=1e-3)  # hard: 1


def test_the_published_epsilon_leaks_where_top_p_is_low_and_ours_sums_to_one() -> None:
    logits_V, top_p = torch.tensor([0.95, 0.03, 0.01, 0.01]).double().log(), torch.tensor(0.3).double().requires_grad_()
    theirs_V = published(logits_V, top_p)
    (spurious,) = torch.autograd.grad(-theirs_V[0].log(), top_p)
    assert theirs_V.sum().item() == pytest.approx(0.767, abs=1e-3) and spurious == pytest.approx(-7.0, abs=0.1)
    ours_V = soft(logits_V[None], space_of("top_p"), top_p.reshape(1, 1))[0].exp()
    (slope,) = torch.autograd.grad(-ours_V[0].log(), top_p)
    assert ours_V.sum().item() == pytest.approx(1, abs=1e-12) and 0 < slope < 0.1  # the right sign: a higher top_p costs


def test_neutral_values_cut_nothing() -> None:
    logits_NV = torch.randn(2, 9).double()
    for name, neutral in (("top_p", 1.0), ("min_p", 0.0), ("top_n_sigma", 0.0)):
        space = KnobSpace.of({name: [neutral]})
        logp_NV = soft(logits_NV, space, torch.full((2, 1), neutral).double())
        torch.testing.assert_close(logp_NV, logits_NV.log_softmax(-1))


@pytest.mark.parametrize("alpha", [0.0, -3.0, float("nan")])
def test_a_steepness_that_does_not_cut_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"alpha={alpha}"):
        soft(torch.randn(3, 5).double(), space_of("top_p"), torch.full((3, 1), 0.5).double(), alpha)


@pytest.mark.parametrize("name", ["typical_p", "repetition_penalty", "top_k"])
def test_a_knob_without_a_differentiable_form_is_named(name: str) -> None:
    space = KnobSpace.of("temperature", name)
    with pytest.raises(ConfigError, match=f"The knob '{name}' has no differentiable form"):
        check_soft(space)
    check_soft(space_of("temperature", *CUTS))


def test_text_that_the_lm_cannot_produce_is_named() -> None:
    row = Columns.of(torch.tensor([[0.0, 1.0], [1.0, -torch.inf]]))
    with pytest.raises(UnreachableTokenError, match="Token 1 of the text has probability 0"):
        check_reachable(row.logit_NC[:, 0], row.logit_NC[:, 1])
