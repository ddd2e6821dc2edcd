"""Order is meaning: one example per engine, small enough to work out on paper."""

import pytest
import torch

from latentknobs import KnobSpace, apply_options


def probabilities(space: KnobSpace, probs: list[float], k: int = 0) -> list[float]:
    """What option k leaves of a distribution."""
    logits_NV = torch.tensor([probs], dtype=torch.float64).log()
    return apply_options(logits_NV, space, torch.tensor([k])).softmax(-1)[0].tolist()


def test_min_p_acts_before_top_p_in_vllm_and_after_it_in_transformers() -> None:
    """transformers: .5 < .65, so two tokens stay; both pass .25 * .5. vllm: min-p leaves .5 and .2, of which .714 >= .65."""
    probs, grid = [0.5, 0.2, 0.12, 0.1, 0.08], {"top_p": [0.65], "min_p": [0.25]}
    assert probabilities(KnobSpace.of(grid, order="transformers"), probs) == pytest.approx([5 / 7, 2 / 7, 0, 0, 0])
    assert probabilities(KnobSpace.of(grid, order="vllm"), probs) == pytest.approx([1, 0, 0, 0, 0])
    assert probabilities(KnobSpace.of(grid, order="llama.cpp"), probs) == pytest.approx([5 / 7, 2 / 7, 0, 0, 0])


def test_temperature_acts_last_in_llama_cpp_and_first_elsewhere() -> None:
    """Heated first, sqrt(.6, .3, .1) has mass .807 < .85 in two tokens, so all stay. Cut first, .9 >= .85 keeps two."""
    probs, grid = [0.6, 0.3, 0.1], {"temperature": [2.0], "top_p": [0.85]}
    roots = [p**0.5 for p in probs]
    heated_first = [root / sum(roots) for root in roots]
    heated_last = [roots[0] / sum(roots[:2]), roots[1] / sum(roots[:2]), 0]
    for order in ("transformers", "vllm"):
        assert probabilities(KnobSpace.of(grid, order=order), probs) == pytest.approx(heated_first)
    assert probabilities(KnobSpace.of(grid, order="llama.cpp"), probs) == pytest.approx(heated_last)


def test_top_k_renormalises_what_top_p_measures() -> None:
    """After top-k 2 of (.4, .3, .2, .1), the first token has mass .571 >= .5; before it, .4 < .5."""
    probs, grid = [0.4, 0.3, 0.2, 0.1], {"top_k": [2], "top_p": [0.5]}
    for order in ("transformers", "vllm", "llama.cpp"):
        assert probabilities(KnobSpace.of(grid, order=order), probs) == pytest.approx([1, 0, 0, 0])
    mass_first = KnobSpace.of(grid, order=["top_p", "top_k"])
    assert probabilities(mass_first, probs) == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_a_given_order_is_followed_to_the_letter() -> None:
    probs, grid = [0.6, 0.3, 0.1], {"temperature": [2.0], "top_p": [0.85]}
    given = KnobSpace.of(grid, order=["top_p", "temperature"])
    assert given.order == "given"
    assert probabilities(given, probs) == pytest.approx(probabilities(KnobSpace.of(grid, order="llama.cpp"), probs))
    assert probabilities(given, probs) != pytest.approx(probabilities(KnobSpace.of(grid), probs))


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("transformers", ("temperature", "top_k", "top_p", "min_p")),
        ("vllm", ("temperature", "min_p", "top_k", "top_p")),
        ("llama.cpp", ("top_k", "top_p", "min_p", "temperature")),
    ],
)
def test_each_engine_has_its_chain_however_the_knobs_were_listed(order: str, names: tuple[str, ...]) -> None:
    assert KnobSpace.of("min_p", "top_p", "temperature", "top_k", order=order).names == names
