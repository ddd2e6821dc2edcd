"""The option head: uniform when new, normalised always, joint or factorised, and the same after a save."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentknobs import KnobSpace
from latentknobs.heads.option_head import OptionHead, head_shape

SPACE = KnobSpace.of({"temperature": [0.0, 0.5, 1.0], "top_p": [0.8, 1.0]})
SUBSET = SPACE.select([0, 3, 4, 5])
both = pytest.mark.parametrize("factorised", [False, True], ids=["joint", "factorised"])
spaces = pytest.mark.parametrize("space", [SPACE, SUBSET], ids=["product", "subset"])


def trained(space: KnobSpace, factorised: bool, features: int = 5, seed: int = 0, rank: int | None = None) -> OptionHead:
    """A head with random weights everywhere, in float64."""
    torch.manual_seed(seed)
    head = OptionHead(space, features, hidden=8, factorised=factorised, rank=rank).double()
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_()
    return head


@both
@spaces
def test_a_new_head_is_exactly_uniform(space: KnobSpace, factorised: bool) -> None:
    log_pi_NK = OptionHead(space, 5, factorised=factorised)(torch.randn(7, 5) * 100)
    assert (log_pi_NK == log_pi_NK[0, 0]).all()
    assert log_pi_NK[0, 0].item() == pytest.approx(-math.log(space.K), abs=1e-6)


@both
@spaces
@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_probabilities_sum_to_one_for_every_shape(space: KnobSpace, factorised: bool, seed: int) -> None:
    head = trained(space, factorised, seed=seed)
    for shape in [(5,), (3, 5), (2, 3, 5), (0, 5)]:
        log_pi = head(torch.randn(shape, dtype=torch.float64))
        assert log_pi.shape == (*shape[:-1], space.K)
        assert torch.allclose(log_pi.exp().sum(-1), torch.ones(shape[:-1], dtype=torch.float64))


def test_a_factorised_head_is_the_product_of_its_knobs() -> None:
    head = trained(SPACE, factorised=True)
    feature_F = torch.randn(5, dtype=torch.float64)
    temperature_J, top_p_J = (part.softmax(-1) for part in head.mlp(feature_F).split([3, 2]))
    assert torch.allclose(head(feature_F).exp(), torch.outer(temperature_J, top_p_J).flatten())


def test_a_joint_head_is_no_product() -> None:
    table = trained(SPACE, factorised=False)(torch.randn(5, dtype=torch.float64)).view(3, 2)
    assert (table[0, 0] + table[1, 1] - table[0, 1] - table[1, 0]).abs() > 1e-3


def test_a_factorised_subset_is_the_product_renormalised_over_what_exists() -> None:
    whole, part = trained(SPACE, factorised=True), trained(SUBSET, factorised=True)
    part.load_state_dict(whole.state_dict())
    feature_NF = torch.randn(4, 5, dtype=torch.float64)
    kept_NK = whole(feature_NF).exp()[:, [0, 3, 4, 5]]
    assert torch.allclose(part(feature_NF).exp(), kept_NK / kept_NK.sum(-1, keepdim=True))


@both
def test_three_linear_layers_with_silu_between(factorised: bool) -> None:
    head = OptionHead(SPACE, 5, hidden=11, factorised=factorised)
    linears = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(5, 11), (11, 11), (11, 5 if factorised else 6)]
    assert [type(layer) for layer in head.mlp] == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear]


@pytest.mark.parametrize("features, told, shape", [
    (1, {}, (128, 0)), (15, {}, (128, 0)), (16, {}, (16, 0)), (64, {}, (16, 0)), (192, {}, (48, 0)), (512, {}, (128, 0)),
    (2047, {}, (128, 0)), (2048, {}, (128, 16)), (4096, {}, (128, 16)), (4096, {"rank": 0}, (128, 0)), (64, {"rank": 8}, (16, 8)),
    (64, {"rank": 64}, (16, 0)), (4096, {"hidden": 2048, "rank": 0}, (2048, 0)), (1, {"hidden": 5, "rank": 3}, (5, 0)),
])  # fmt: skip
def test_a_shape_fits_the_features_unless_it_is_told(features: int, told: dict[str, int], shape: tuple[int, int]) -> None:
    assert head_shape(features, **told) == shape
    with torch.device("meta"):
        head = OptionHead(SPACE, features, **told)
    assert (head.hidden, head.rank) == shape
    weights = [layer.weight.shape for layer in head.mlp if isinstance(layer, nn.Linear)]
    hidden, rank = shape
    reduce = [(rank, features)] if rank else []
    assert weights == [*reduce, (hidden, rank or features), (hidden, hidden), (SPACE.K, hidden)]


@pytest.mark.parametrize("rank", [1, 3, 5, 9])
def test_a_rank_puts_a_linear_layer_in_front_where_there_are_more_features(rank: int) -> None:
    head, plain = (OptionHead(SPACE, 5, hidden=11, rank=given) for given in (rank, None))
    linears = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    if rank >= 5:
        assert [layer.weight.shape for layer in linears] == [p.shape for p in plain.parameters() if p.dim() == 2]
        return
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(5, rank), (rank, 11), (11, 11), (11, 6)]
    assert linears[0].bias is None and isinstance(head.mlp[1], nn.Linear)


def test_a_head_of_low_rank_is_one_without_whose_first_weights_are_a_product() -> None:
    low, plain = trained(SPACE, False, rank=2), trained(SPACE, False)
    reduce, first, *rest = (layer for layer in low.mlp if isinstance(layer, nn.Linear))
    wanted = [(first.weight @ reduce.weight, first.bias), *((layer.weight, layer.bias) for layer in rest)]
    with torch.no_grad():
        for layer, (weight, bias) in zip((layer for layer in plain.mlp if isinstance(layer, nn.Linear)), wanted, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    feature_NF = torch.randn(4, 5, dtype=torch.float64) * 3 + 1
    for head in (low, plain):
        head.fit_scaler(*moments(feature_NF))
    assert torch.allclose(low(feature_NF), plain(feature_NF), rtol=0, atol=1e-9)


def moments(feature_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return feature_NF.double().mean(0), feature_NF.double().std(0, correction=0)


def standardised(head: OptionHead, feature_NF: torch.Tensor) -> torch.Tensor:
    """The head with its features standardised one by one, as it is defined."""
    return head._log_pi(head.mlp((feature_NF - head.shift_F) / head.scale_F))


def test_fit_scaler_standardises_and_ignores_constant_features() -> None:
    head = trained(SPACE, factorised=False, features=3)
    feature_NF = torch.randn(200, 3, dtype=torch.float64) * torch.tensor([100.0, 0.01, 0.0]) + torch.tensor([5.0, -3.0, 7.0])
    head.fit_scaler(*moments(feature_NF))
    scaled_NF = (feature_NF - head.shift_F) / head.scale_F
    assert torch.allclose(scaled_NF.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(scaled_NF.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    plain = trained(SPACE, factorised=False, features=3)
    assert torch.allclose(head(feature_NF), plain(scaled_NF))
    surprising_NF = feature_NF + torch.tensor([0.0, 0.0, 50.0])
    assert torch.equal(head(surprising_NF), head(feature_NF)), "nothing was learned about a feature that never changed"


def test_a_single_row_of_features_does_not_break_the_scaler() -> None:
    head = trained(SPACE, factorised=False)
    head.fit_scaler(*moments(torch.ones(1, 5)))
    assert head(torch.ones(1, 5, dtype=torch.float64)).isfinite().all()


@both
@spaces
@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(-6, 4), st.floats(-2, 3))
def test_a_head_is_its_layers_on_standardised_features_in_values_and_gradients(
    space: KnobSpace, factorised: bool, seed: int, shift: float, scale: float
) -> None:
    """Also with a feature whose mean is a million times its deviation, and one that is constant."""
    head = trained(space, factorised, seed=seed)
    feature_NF = torch.randn(9, 5, dtype=torch.float64) * 10**scale + 10**shift
    feature_NF[:, 0] = 7.0
    head.fit_scaler(*moments(feature_NF))
    weight_NK = torch.randn(9, space.K, dtype=torch.float64)
    plain, folded = standardised(head, feature_NF), head(feature_NF)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-8)
    gradients = [torch.autograd.grad((out * weight_NK).sum(), list(head.parameters())) for out in (plain, folded)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert (gradients[1][0][:, 0] == 0).all(), "a constant feature gets no gradient, not even from rounding"


def test_in_float32_folding_costs_no_more_than_features_of_that_precision_do() -> None:
    """Means a hundred times the deviation, as some dimensions of language models have."""
    torch.manual_seed(0)
    head = OptionHead(SPACE, 64)
    torch.nn.init.normal_(head.mlp[-1].weight, std=0.3)
    feature_NF = torch.randn(500, 64) + 100 * torch.randn(64)
    head.fit_scaler(*moments(feature_NF))
    exact_NK = standardised(copy.deepcopy(head).double(), feature_NF.double())
    assert (standardised(head, feature_NF) - exact_NK).abs().max() < 1e-5
    assert (head(feature_NF) - exact_NK).abs().max() < 1e-4


def test_folding_takes_any_shape_and_any_precision() -> None:
    head = OptionHead(SPACE, 5)
    for shape in [(5,), (2, 3, 5), (0, 5)]:
        for dtype in (torch.bfloat16, torch.float32):
            assert head(torch.ones(shape, dtype=dtype)).shape == (*shape[:-1], SPACE.K)


@both
@spaces
def test_a_saved_head_comes_back_the_same(space: KnobSpace, factorised: bool) -> None:
    head = trained(space, factorised)
    head.fit_scaler(*moments(torch.randn(20, 5) * 3 + 1))
    again = OptionHead(space, 5, hidden=8, factorised=factorised).double()
    again.load_state_dict(head.state_dict())
    feature_NF = torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(again(feature_NF), head(feature_NF))
    assert "grid_KJ" not in head.state_dict(), "the space is saved once, not in the weights"


@both
def test_features_of_another_precision_are_converted(factorised: bool) -> None:
    head = OptionHead(SPACE, 5, factorised=factorised)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert head(torch.ones(2, 5, dtype=dtype)).dtype == torch.float32


@both
@spaces
def test_a_new_head_can_learn(space: KnobSpace, factorised: bool) -> None:
    """A last layer of zeros must not stop gradients: one step changes the last layer, the next all of them."""
    head = OptionHead(space, 5, factorised=factorised)
    for _ in range(2):
        head.zero_grad()
        (-head(torch.ones(1, 5))[0, -1]).backward()
        with torch.no_grad():
            for weight in head.parameters():
                weight -= weight.grad
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in head.parameters())
    assert head(torch.ones(1, 5))[0].argmax() == space.K - 1
