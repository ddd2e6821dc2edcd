"""Features: what each statistic is, by definition, and how names are checked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.errors import ConfigError
from latentknobs.heads.features import STATISTICS, check_features, read_features, width

ALL = ("hidden", *STATISTICS)


def one(name: str, *probs: float, shift: float = 0.0) -> float:
    """A statistic of one distribution; a shift of all logits means nothing."""
    logits_NV = torch.tensor([probs], dtype=torch.float64).log() + shift
    return read_features([name], torch.zeros(1, 2), logits_NV).item()


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.floats(-50, 50))
def test_statistics_equal_their_definitions(weights: list[float], shift: float) -> None:
    probs = [weight / sum(weights) for weight in weights]
    ranked = sorted(probs, reverse=True)
    expected = {
        "entropy": -sum(p * math.log(p) for p in probs),
        "max_prob": ranked[0],
        "top5_mass": sum(ranked[:5]),
        "log_collision": math.log(sum(p * p for p in probs)),
        "margin": math.log(ranked[0] / ranked[1]) if len(probs) > 1 else 0.0,
    }
    assert set(expected) == set(STATISTICS)
    for name, value in expected.items():
        assert one(name, *probs, shift=shift) == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize(("name", "certain"), [
    ("entropy", 0.0), ("max_prob", 1.0), ("top5_mass", 1.0), ("log_collision", 0.0), ("margin", 30.0),
])  # fmt: skip
def test_removed_tokens_and_certainty_give_finite_statistics(name: str, certain: float) -> None:
    assert one(name, 0.0, 1.0, 0.0) == pytest.approx(certain)
    assert one(name, 0.0, 0.5, 0.5) == pytest.approx(one(name, 0.5, 0.5))


def test_columns_come_in_the_order_of_the_names() -> None:
    hidden_ND, logits_NV = torch.randn(3, 4), torch.randn(3, 7)
    names = ("max_prob", "hidden", "entropy")
    feature_NF = read_features(names, hidden_ND, logits_NV)
    assert feature_NF.shape == (3, width(names, 4)) == (3, 6)
    assert torch.equal(feature_NF[:, 1:5], hidden_ND)
    assert torch.allclose(feature_NF[:, 0], logits_NV.softmax(-1).amax(-1))
    assert torch.equal(feature_NF[:, 5:], read_features(["entropy"], hidden_ND, logits_NV))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_features_are_float32_and_float64_stays(dtype: torch.dtype) -> None:
    hidden_ND, logits_NV = torch.randn(2, 3).to(dtype), torch.randn(2, 5).to(dtype)
    feature_NF = read_features(ALL, hidden_ND, logits_NV)
    assert feature_NF.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(feature_NF[:, :3], hidden_ND.to(feature_NF.dtype))
    exact_NF = read_features(ALL, hidden_ND.double(), logits_NV.double())
    assert torch.allclose(feature_NF.double(), exact_NF, atol=1e-5)


def test_names_are_checked() -> None:
    assert check_features(["entropy", "hidden"]) == ("entropy", "hidden")
    with pytest.raises(ConfigError, match=r"no feature 'entrophy'\. Did you mean \"entropy\"\? Known: .*hidden"):
        check_features(["entrophy"])
    for bad in ([], ["entropy", "entropy"]):
        with pytest.raises(ConfigError, match="must be at least one name, each once"):
            check_features(bad)
