"""Theorems 3.1 to 3.5 of arXiv 2311.10083, on the shipped knobs: each maximises its sum of terms over the simplex.

The sums are written out in docs/guidance.md. An objective -KL(pi || P) + w H(pi) + E_pi[g] is concave for w > -1, so the closed
form is its maximum if no other distribution earns more; it must also be what an optimiser finds that knows nothing of it.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import latentknobs as lk
from latentknobs.data.disk import save_tensors
from latentknobs.heads.discriminator import FORMAT, Discriminator, load_discriminator
from latentknobs.likelihood.apply import apply_values
from latentknobs.likelihood.information import Terms, expectation, kl, terms

V = 6
seeds, weights = st.integers(0, 100_000), st.floats(0.05, 1.5)


def logits(seed: int, rows: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, V, generator=draw, dtype=torch.float64) * 1.5


def others(seed: int) -> Tensor:
    """(400, V) logits of distributions: anywhere, near the corners, and the uniform one."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.0, 0.5, 2.0, 10.0], dtype=torch.float64).repeat_interleave(100).unsqueeze(-1)
    return torch.randn(400, V, generator=draw, dtype=torch.float64) * scale


def objective(value_NV: Tensor, logits_1V: Tensor, entropy: float, gain_1V: Tensor | None = None) -> Tensor:
    """(N,) -KL(pi || P) + entropy * H(pi) + E_pi[gain]."""
    found = terms(value_NV, logits_1V.expand_as(value_NV))
    gained_N = 0.0 if gain_1V is None else expectation(value_NV.softmax(-1), gain_1V.expand_as(value_NV))
    return found.sensibleness_N + entropy * found.diversity_N + gained_N


def ascended(logits_1V: Tensor, entropy: float, gain_1V: Tensor | None = None) -> Tensor:
    """(1, V) what Newton-free ascent on the logits of pi finds from the uniform distribution."""
    at_1V = torch.zeros_like(logits_1V, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [at_1V], max_iter=80, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -objective(at_1V, logits_1V, entropy, gain_1V).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return at_1V.detach()


def check(found_1V: Tensor, seed: int, score: Callable[[Tensor], Tensor], best_1V: Tensor | None = None) -> None:
    assert (score(others(seed + 1)) <= score(found_1V) + 1e-9).all(), "another distribution earns more"
    if best_1V is not None:
        assert score(best_1V).item() == pytest.approx(score(found_1V).item(), abs=1e-3)
        assert torch.allclose(best_1V.softmax(-1), found_1V.softmax(-1), atol=0.03)


def drawn(values: dict[str, float], logits_1V: Tensor, **context: Tensor) -> Tensor:
    """The logits that tokens are drawn from under these values of knobs."""
    space = lk.KnobSpace.of({name: [value] for name, value in values.items()})
    parts = lk.Context(logits_NV=logits_1V, **context) if context else None
    return apply_values(logits_1V, space, space.values_KJ(), parts)


@pytest.fixture(scope="module")
def discriminator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    found = Discriminator(hidden_size=5, vocabulary=V, rank=3).double()
    torch.nn.init.normal_(found.state.weight, std=2.0)
    path = tmp_path_factory.mktemp("discriminator") / "d.safetensors"
    save_tensors(found.state_dict(), path, {"format": FORMAT, "model": "none"})
    return path


@settings(max_examples=15)
@given(seed=seeds, weight=weights)
def test_3_1_classifier_guidance_weighs_the_discriminator(discriminator: Path, seed: int, weight: float) -> None:
    """-KL(pi || P) + w E_pi[log D(e | s, a)]: classifier_scale w."""
    logits_1V, hidden_1D = logits(seed), logits(seed + 9)[:, :5]
    gain_1V = weight * load_discriminator(discriminator)[0].log_prob(hidden_1D.float(), V).double()
    space = lk.KnobSpace.of({"classifier_scale": {"options": [weight], "discriminator": str(discriminator)}})  # type: ignore[dict-item]
    found_1V = apply_values(logits_1V, space, space.values_KJ(), lk.Context(hidden_ND=hidden_1D))
    check(found_1V, seed, lambda value_NV: objective(value_NV, logits_1V, 0.0, gain_1V), ascended(logits_1V, 0.0, gain_1V))


@settings(max_examples=15)
@given(seeds, weights)
def test_3_2_classifier_free_guidance_weighs_attribution(seed: int, weight: float) -> None:
    """-KL(pi || P) + w E_pi[log P - log P_without]: guidance_scale 1 + w."""
    logits_1V, second_1V = logits(seed), logits(seed + 7)
    gain_1V = weight * (logits_1V.log_softmax(-1) - second_1V.log_softmax(-1))
    found_1V = drawn({"guidance_scale": 1 + weight}, logits_1V, second_NV=second_1V)
    check(found_1V, seed, lambda value_NV: objective(value_NV, logits_1V, 0.0, gain_1V), ascended(logits_1V, 0.0, gain_1V))


@settings(max_examples=15)
@given(seeds, st.floats(0.2, 4), st.floats(0.1, 10))
def test_3_3_kl_guided_temperature_weighs_diversity_by_the_state(seed: int, base: float, half_life: float) -> None:
    """-KL(pi || P) + (T - 1) H(pi) with T = base 2^(-KL(P || P_without) / half_life): by knobs, and by the rule."""
    logits_1V, second_1V = logits(seed), logits(seed + 7)
    temperature = base * 2 ** (-kl(logits_1V, second_1V).item() / half_life)
    found_1V = drawn({"temperature": base, "kl_half_life": half_life}, logits_1V, second_NV=second_1V)
    check(found_1V, seed, lambda value_NV: objective(value_NV, logits_1V, temperature - 1))
    if temperature > 0.5:
        check(
            found_1V, seed, lambda value_NV: objective(value_NV, logits_1V, temperature - 1), ascended(logits_1V, temperature - 1)
        )


@settings(max_examples=15)
@given(seeds, st.floats(0.5, 5))
def test_3_4_temperature_weighs_diversity(seed: int, temperature: float) -> None:
    """-KL(pi || P) + (T - 1) H(pi) = E_pi[log P] + T H(pi)."""
    logits_1V = logits(seed)
    found_1V = drawn({"temperature": temperature}, logits_1V)
    check(found_1V, seed, lambda value_NV: objective(value_NV, logits_1V, temperature - 1), ascended(logits_1V, temperature - 1))
    value = expectation(found_1V.softmax(-1), logits_1V.log_softmax(-1)) + temperature * terms(found_1V, logits_1V).diversity_N
    assert torch.allclose(value, temperature * (logits_1V.log_softmax(-1) / temperature).logsumexp(-1)), "the maximum itself"


@given(seeds)
def test_3_5_greedy_decoding_has_no_weight_on_diversity(seed: int) -> None:
    """E_pi[log P] = -KL(pi || P) - H(pi), the limit T = 0."""
    logits_1V = logits(seed)
    found_1V = drawn({"temperature": 0.0}, logits_1V)
    check(found_1V, seed, lambda value_NV: objective(value_NV, logits_1V, -1.0))
    assert objective(found_1V, logits_1V, -1.0).item() == pytest.approx(logits_1V.log_softmax(-1).amax().item())


@given(seeds, st.integers(0, 2**V - 2))
def test_the_terms_add_up(seed: int, removed: int) -> None:
    """-KL - H = E_pi[log P], and attribution is E_pi[log P] - E_pi[log P_without], also where pi removes tokens."""
    logits_1V, second_1V, policy_1V = logits(seed), logits(seed + 1), logits(seed + 2)
    policy_1V = policy_1V.masked_fill(torch.tensor([[bool(removed >> i & 1) for i in range(V)]]), -math.inf)
    found, pi_1V = terms(policy_1V, logits_1V, second_1V), policy_1V.softmax(-1)
    expected = sum(p * x for p, x in zip(pi_1V[0].tolist(), logits_1V.log_softmax(-1)[0].tolist(), strict=True))
    without = sum(p * x for p, x in zip(pi_1V[0].tolist(), second_1V.log_softmax(-1)[0].tolist(), strict=True))
    assert found.sensibleness_N.item() - found.diversity_N.item() == pytest.approx(expected, abs=1e-9)
    assert found.attribution_N is not None and found.attribution_N.item() == pytest.approx(expected - without, abs=1e-9)
    assert found.sensibleness_N.item() <= 1e-12 and found.diversity_N.item() >= -1e-12
    assert terms(logits_1V, logits_1V) == Terms(torch.tensor([0.0], dtype=torch.float64), *terms(logits_1V, logits_1V)[1:])


def test_a_distribution_outside_of_another_is_infinitely_far() -> None:
    one, other = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    assert kl(one, other).item() == math.inf and kl(one, one).item() == 0
    assert kl(one, torch.zeros(1, 2)).item() == pytest.approx(math.log(2))
