"""Responses that share the reading of their prompt have the states and logits that they have alone."""

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_modes_families import model_of
from test_prompt_reader import columns_read
from tiny_models import VOCAB, tiny_lm, word_tokenizer

from latentknobs.engines.transformers import TransformersEngine
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.engines.transformers.settings import announce

FAMILIES = ("llama", "gpt2", "gemma2", "gemma3", "qwen3", "neox", "mamba", "gpt")
MODELS: dict[str, Any] = {}
tokens = st.integers(3, VOCAB - 1)
prompts = st.lists(st.lists(tokens, min_size=1, max_size=6), min_size=1, max_size=3)
answers = st.lists(st.tuples(st.integers(0, 2), st.lists(tokens, max_size=12)), min_size=1, max_size=6)


def lm_of(family: str) -> Any:
    if family == "gpt":  # has no cache
        config = transformers.OpenAIGPTConfig(vocab_size=VOCAB, n_positions=128, n_embd=16, n_layer=2, n_head=2)
        MODELS[family] = transformers.OpenAIGPTLMHeadModel(config).eval().double()
    if family not in MODELS:
        lm = tiny_lm(family) if family in ("llama", "gpt2", "gemma2") else model_of(family)
        MODELS[family] = lm if family.startswith("gemma") else lm.double()  # Gemma's padding is NaN in float64
    return MODELS[family]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20)
@given(prompts, answers)
def test_a_response_is_read_as_if_alone(family: str, some: list[list[int]], rows: list[tuple[int, list[int]]]) -> None:
    lm = lm_of(family)
    questions, responses = [some[n % len(some)] for n, _ in rows], [response for _, response in rows]
    found = TransformersEngine(lm, word_tokenizer()).read(questions, responses)
    alone = [next(read_responses(lm, [q], [r])) for q, r in zip(questions, responses, strict=True)]
    tolerance = 2e-5 if family.startswith("gemma") else 1e-10
    for (hidden_TD, logits_TV), (hidden, logits), response in zip(found, alone, responses, strict=True):
        assert len(hidden_TD) == len(logits_TV) == len(response)
        torch.testing.assert_close(hidden_TD, hidden, rtol=0, atol=tolerance)
        torch.testing.assert_close(logits_TV, logits, rtol=0, atol=tolerance)


def test_each_distinct_prompt_is_read_once_and_not_at_all_after_its_responses_were_sampled() -> None:
    lm = lm_of("llama")
    questions, responses = [[3, 5, 7], [9, 11]] * 4, [[5, 6]] * 8
    engine = TransformersEngine(lm, word_tokenizer())
    assert columns_read(lm, lambda: list(engine.read(questions, responses))) == [(2, 2), (8, 2), (1, 4)], (
        "one row once more, alone"
    )
    assert columns_read(lm, lambda: list(engine.read(questions, responses))) == [(8, 2)]


def test_the_model_is_left_as_it_was() -> None:
    lm = lm_of("llama").train()
    state = torch.get_rng_state()
    ((hidden_TD, logits_TV),) = TransformersEngine(lm, word_tokenizer()).read([[3, 5]], [[7, 9]])
    assert lm.training and torch.equal(torch.get_rng_state(), state) and not lm.lm_head._forward_pre_hooks
    assert not hidden_TD.requires_grad and not logits_TV.requires_grad
    lm.eval()


@pytest.mark.parametrize("takes", [True, False])
def test_a_model_that_counts_padding_is_read_copy_by_copy(takes: bool) -> None:
    """gpt2 has learned positions, so that a shift shows; here it does not hear of `position_ids`."""
    lm = tiny_lm("gpt2").double()
    forward = lm.forward

    def deaf(input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **others: Any) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, **others)

    def unknown(input_ids: Any = None, attention_mask: Any = None, use_cache: Any = None, past_key_values: Any = None) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, past_key_values=past_key_values)

    lm.forward = deaf if takes else unknown
    questions, responses = [[3, 5, 7, 9, 11], [9, 11]] * 2, [[5, 6], [7], [8, 9], []]
    announce.cache_clear()
    engine = TransformersEngine(lm, word_tokenizer())
    if takes:
        with pytest.warns(UserWarning, match="Each response is read with its whole prompt: GPT2LMHeadModel"):
            found = list(engine.read(questions, responses))
    else:
        found = list(engine.read(questions, responses))
    for (hidden_TD, logits_TV), question, response in zip(found, questions, responses, strict=True):
        ((hidden, logits),) = read_responses(lm, [question], [response])
        torch.testing.assert_close((hidden_TD, logits_TV), (hidden, logits), rtol=0, atol=1e-10)
