"""The options mean what transformers' own warpers do: every option of a temperature x top_k x top_p x min_p grid, float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from latentknobs import KnobSpace, apply_options, option_logps
from latentknobs.likelihood import reference

GRID = {
    "temperature": [0.0, 0.3, 1.0, 1.7],
    "top_k": [0, 1, 3, 500],
    "top_p": [0.05, 0.5, 0.9, 1.0],
    "min_p": [0.0, 0.05, 0.4, 1.0],
}
SPACE = KnobSpace.of(GRID)
V = 11


def random_logits(seed: int, N: int, spread: float, removed: float) -> Tensor:
    """Distinct logits in each row, some of them already removed, never all."""
    rng = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(N, V, generator=rng, dtype=torch.float64) * spread
    lost_NV = torch.rand(N, V, generator=rng) < removed
    lost_NV[:, seed % V] = False
    return logits_NV.masked_fill(lost_NV, -torch.inf)


def warped_by_transformers(logits_NV: Tensor, option: dict[str, float]) -> Tensor:
    """What `generate` would sample from, its warpers in its order, built as `_get_logits_processor` builds them."""
    chain = LogitsProcessorList()
    if option["temperature"] == 0:
        greedy_NV = torch.full_like(logits_NV, -torch.inf)
        best_N = torch.tensor([row.index(max(row)) for row in logits_NV.tolist()])
        greedy_NV[torch.arange(len(logits_NV)), best_N] = 0.0
        return greedy_NV
    if option["temperature"] != 1:
        chain.append(TemperatureLogitsWarper(option["temperature"]))
    if option["top_k"] != 0:
        chain.append(TopKLogitsWarper(int(option["top_k"])))
    if option["top_p"] < 1:
        chain.append(TopPLogitsWarper(option["top_p"]))
    if option["min_p"] > 0:
        chain.append(MinPLogitsWarper(option["min_p"]))
    return chain(None, logits_NV)


draws = {"seed": st.integers(0, 2**31), "spread": st.sampled_from([0.2, 2.0, 8.0]), "removed": st.sampled_from([0.0, 0.5])}


@settings(max_examples=8)
@given(**draws)
@example(seed=1, spread=2.0, removed=0.0)
def test_every_option_removes_the_same_tokens_and_leaves_the_same_distribution(seed: int, spread: float, removed: float) -> None:
    logits_NV = random_logits(seed, 6, spread, removed)
    sizes = set()
    for k, option in enumerate(SPACE.options):
        theirs_NV = warped_by_transformers(logits_NV, option).log_softmax(-1)
        ours_NV = apply_options(logits_NV, SPACE, torch.full((len(logits_NV),), k)).log_softmax(-1)
        assert torch.equal(ours_NV.isneginf(), theirs_NV.isneginf()), option
        assert torch.allclose(ours_NV, theirs_NV, rtol=0, atol=1e-9), option
        sizes.update(ours_NV.isfinite().sum(-1).tolist())
    assert len(sizes) > 3, "the grid must exercise cuts of several sizes"


@settings(max_examples=8)
@given(**draws)
@pytest.mark.parametrize("likelihoods", [option_logps, reference.option_logps], ids=["public", "reference"])
def test_option_logps_are_those_of_the_warped_distribution(likelihoods: object, seed: int, spread: float, removed: float) -> None:
    logits_NV = random_logits(seed, V, spread, removed)
    target_N = torch.arange(V)
    theirs_NK = torch.stack(
        [warped_by_transformers(logits_NV, option).log_softmax(-1)[target_N, target_N] for option in SPACE.options], 1
    )
    ours_NK = likelihoods(logits_NV, target_N, SPACE)
    assert ours_NK.dtype == torch.float64
    assert torch.equal(ours_NK.isneginf(), theirs_NK.isneginf())
    assert torch.allclose(ours_NK, theirs_NK, rtol=0, atol=1e-9)


def test_the_default_order_is_the_one_in_which_generate_builds_its_warpers(lm: torch.nn.Module) -> None:
    config = GenerationConfig(do_sample=True, temperature=0.5, top_k=5, top_p=0.9, min_p=0.1)
    chain = lm._get_logits_processor(generation_config=config, input_ids_seq_length=1, logits_processor=LogitsProcessorList())
    theirs = [type(warper) for warper in chain]
    known = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    assert theirs == [known[name] for name in KnobSpace.of(*reversed(list(GRID))).names]


def test_the_comparison_can_fail() -> None:
    """Another order is told apart by the very loop used above."""
    other = KnobSpace.of(GRID, order="vllm")
    differs = False
    for seed in range(5):
        logits_NV = random_logits(seed, 6, 2.0, 0.0)
        for k, option in enumerate(other.options):
            ours_NV = apply_options(logits_NV, other, torch.full((6,), k))
            differs |= not torch.equal(ours_NV.isneginf(), warped_by_transformers(logits_NV, option).isneginf())
    assert differs
