"""Contributed knobs equal transformers' own warper in float64 where there is one, and their paper's formula elsewhere."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TopHLogitsWarper,
    TypicalLogitsWarper,
)

from latentknobs import KnobSpace
from latentknobs.knobs.context import Context
from latentknobs.knobs.registry import resolve
from latentknobs.likelihood.reference import apply_options

WARPERS = {
    "epsilon_cutoff": (lambda v: EpsilonLogitsWarper(v), (0.0003, 0.003, 0.03, 0.3, 0.9)),
    "eta_cutoff": (lambda v: EtaLogitsWarper(v), (0.0003, 0.003, 0.03, 0.3, 0.9)),
    "typical_p": (lambda v: TypicalLogitsWarper(v), (0.05, 0.2, 0.5, 0.95, 0.999)),
    "top_h": (lambda v: TopHLogitsWarper(v), (0.05, 0.3, 0.5, 0.8, 0.99)),
}


def rows(seed: int, n: int = 5, v: int = 130) -> Tensor:
    """(n, v) float64 logits of mixed peakedness, a few tokens removed before; more tokens than top-H looks at."""
    generator = torch.Generator().manual_seed(seed)
    scale_N1 = torch.tensor([0.1, 0.5, 1.0, 3.0, 8.0], dtype=torch.float64)[:n].unsqueeze(-1)
    logits_NV = torch.randn(n, v, generator=generator, dtype=torch.float64) * scale_N1
    return logits_NV.masked_fill(torch.rand(n, v, generator=generator) < 0.1 * (seed % 3), -torch.inf)


def apply(name: str, logits_NV: Tensor, value: float) -> Tensor:
    knob = resolve({name: [value]})
    return knob.apply(logits_NV, logits_NV.new_full((len(logits_NV),), value))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (_, values) in WARPERS.items() for value in values])
@given(seed=st.integers(0, 10_000))
def test_knobs_equal_the_warper_of_transformers_in_float64(name: str, value: float, seed: int) -> None:
    logits_NV = rows(seed)
    theirs_NV = WARPERS[name][0](value)(torch.zeros(5, 1, dtype=torch.long), logits_NV.clone())
    assert torch.equal(apply(name, logits_NV, value), theirs_NV)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.1, 1.3, 2.0]))
def test_repetition_penalty_equals_that_of_transformers_prompt_included(seed: int, penalty: float) -> None:
    logits_NV = rows(seed)
    ids_NL = torch.randint(0, 130, (5, 12), generator=torch.Generator().manual_seed(seed))
    theirs_NV = RepetitionPenaltyLogitsProcessor(penalty)(ids_NL, logits_NV.clone())
    knob, value_N = resolve({"repetition_penalty": [penalty]}), logits_NV.new_full((5,), penalty)
    assert torch.equal(knob.apply_in(logits_NV, value_N, Context(previous_NL=ids_NL)), theirs_NV)


def test_repetition_penalty_leaves_left_padding_out_as_transformers_does() -> None:
    logits_NV, ids_NL = rows(0), torch.randint(0, 130, (5, 6), generator=torch.Generator().manual_seed(0))
    padding_N = torch.tensor([0, 1, 2, 3, 4])
    of_rows = [  # row by row: one length for each row came after transformers 5.17
        RepetitionPenaltyLogitsProcessor(1.3, prompt_ignore_length=n or None)(ids_NL[n : n + 1], logits_NV[n : n + 1].clone())
        for n in padding_N.tolist()
    ]
    theirs_NV = torch.cat(of_rows)
    mask_NL = torch.arange(6) >= padding_N.unsqueeze(-1)
    context = Context.of_step(ids_NL, 6, mask_NL)
    ours_NV = resolve("repetition_penalty").apply_in(logits_NV, logits_NV.new_full((5,), 1.3), context)
    assert torch.equal(ours_NV, theirs_NV)


@given(st.integers(0, 10_000))
def test_a_chain_of_all_of_them_acts_in_the_order_of_transformers(seed: int) -> None:
    settings = {
        "temperature": 0.8, "top_h": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.001, "typical_p": 0.95,
        "epsilon_cutoff": 0.004, "eta_cutoff": 0.01,
    }  # fmt: skip
    config = GenerationConfig(do_sample=True, **settings)
    logits_NV = rows(3 * seed)
    space = KnobSpace.of({name: [value] for name, value in reversed(settings.items()) if "cutoff" not in name},
                         {"epsilon_cutoff": [0.004]}, {"eta_cutoff": [0.01]})  # fmt: skip
    ours_NV = apply_options(logits_NV, space, torch.zeros(5, dtype=torch.long))
    assert torch.equal(ours_NV, _chain(config)(torch.zeros(5, 1, dtype=torch.long), logits_NV.clone()))


@cache
def _tiny() -> LlamaForCausalLM:
    sizes = {"vocab_size": 4, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes))


def _chain(config: GenerationConfig) -> LogitsProcessorList:
    """The processors that `generate` would build for a config, by its own code."""
    return _tiny()._get_logits_processor(config, input_ids_seq_length=1, device="cpu")


# knobs that transformers does not have: straight from their papers


@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.5, 1.0]))
def test_p_less_keeps_tokens_at_least_as_probable_as_two_draws_are_to_coincide(seed: int, scale: float) -> None:
    for logits_V in rows(seed):
        p_V = logits_V.softmax(-1)
        keep_V = p_V >= scale * (p_V**2).sum()
        assert torch.equal(apply("p_less", logits_V.unsqueeze(0), scale)[0].isfinite(), keep_V & logits_V.isfinite())


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 2.0]))
def test_top_n_sigma_keeps_logits_within_n_deviations_of_the_best(seed: int, n: float) -> None:
    for logits_V in rows(seed):
        left_V = logits_V[logits_V.isfinite()]
        keep_V = logits_V >= left_V.max() - n * left_V.std(correction=0)
        assert torch.equal(apply("top_n_sigma", logits_V.unsqueeze(0), n)[0].isfinite(), keep_V)


@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.7, 1.9]))
def test_top_n_sigma_keeps_the_same_tokens_at_every_temperature(seed: int, temperature: float) -> None:
    logits_NV = rows(seed)
    cold_NV, warm_NV = apply("top_n_sigma", logits_NV / temperature, 1.0), apply("top_n_sigma", logits_NV, 1.0)
    assert torch.equal(cold_NV.isfinite(), warm_NV.isfinite())


def test_xtc_keeps_the_least_probable_of_the_top_choices_and_all_that_is_below() -> None:
    logits_NV = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]], dtype=torch.float64).log()
    kept = {t: apply("xtc_threshold", logits_NV, t)[0].isfinite().tolist() for t in (0.12, 0.35, 0.5, 0.01)}
    assert kept[0.12] == [False, False, True, True, True]
    assert kept[0.35] == kept[0.5] == [True] * 5
    assert kept[0.01] == [False, False, False, False, True]


@given(st.integers(0, 10_000))
def test_top_h_keeps_ties_with_the_last_kept_token(seed: int) -> None:
    logits_NV = rows(seed).mul(2).round()
    out_NV = apply("top_h", logits_NV, 0.5)
    lowest_N1 = out_NV.masked_fill(out_NV.isneginf(), torch.inf).amin(-1, keepdim=True)
    assert torch.equal(out_NV.isfinite(), logits_NV >= lowest_N1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lowest", [torch.float16, torch.bfloat16, torch.float32])
def test_top_n_sigma_reads_no_masked_token(dtype: torch.dtype, lowest: torch.dtype) -> None:
    removed_NV = rows(1).to(dtype)
    masked_NV = removed_NV.clamp(min=torch.finfo(lowest).min)
    for value in (0.5, 1.0, 2.0):
        assert torch.equal(apply("top_n_sigma", masked_NV, value), apply("top_n_sigma", removed_NV, value))
