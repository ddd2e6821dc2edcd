"""Copies that share the reading of their prompt say and choose what copies that read everything do."""

import warnings
from typing import Any

import pytest
import torch
from decoding_oracle import LEVELS, SPACE, policy_for
from hypothesis import given
from hypothesis import strategies as st
from test_modes_families import model_of
from tiny_models import STOPS, VOCAB, tiny_lm, word_tokenizer
from transformers.cache_utils import DynamicLayer

import latentknobs as lk
from latentknobs.engines.base import Response
from latentknobs.engines.transformers import TransformersEngine, prompt_reader
from latentknobs.engines.transformers.prompt_reader import GrowingLayer, PromptReader, size_of
from latentknobs.heads.segmenters import Every
from latentknobs.policies import GreedyPolicy, Policy, UniformPolicy

MANY = [torch.randint(3, VOCAB, (1 + n % 5,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(8)]
COPIES = [prompt for prompt in MANY for _ in range(3)]


def lm_of(family: str) -> Any:
    lm = tiny_lm(family) if family in ("llama", "gpt2", "gemma2") else model_of(family)
    lm.generation_config.eos_token_id = STOPS[:2]
    return lm if family.startswith("gemma") else lm.double()  # Gemma's padding is NaN in float64, with or without copies


def sampled(engine: TransformersEngine, policy: Policy, rows: list[list[int]] = COPIES, tokens: int = 40) -> list[Response]:
    return engine.sample(rows, policy, max_new_tokens=tokens, seed=3)


def alone(lm: Any, policy: Policy, rows: list[list[int]] = COPIES, tokens: int = 40) -> list[Response]:
    """The slow twin: each copy reads its whole prompt."""
    engine = TransformersEngine(lm, word_tokenizer())
    engine._prompts._is_refused = True
    return sampled(engine, policy, rows, tokens)


def columns_read(lm: Any, call: Any) -> list[tuple[int, int]]:
    """Rows and columns of each forward call that `call` makes."""
    read: list[tuple[int, int]] = []
    handle = lm.get_input_embeddings().register_forward_hook(lambda module, args, out: read.append(tuple(args[0].shape)))
    try:
        call()
    finally:
        handle.remove()
    return read


def test_the_last_states_of_many_prompts_are_one_block(lms: dict[str, Any]) -> None:
    """A view with gaps would make torch copy the output embeddings once for each prompt, 29 GB for 512 prompts of SmolLM2."""
    lm, seen = lms["llama"], []
    handle = lm.lm_head.register_forward_hook(lambda module, args, out: seen.append(args[0].is_contiguous()))
    try:
        PromptReader(lm).read(torch.randint(3, VOCAB, (6, 5)), torch.ones(6, 5, dtype=torch.long))
    finally:
        handle.remove()
    assert seen == [True] and not lm.lm_head._forward_pre_hooks


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3", "qwen3", "neox"])
def test_copies_say_and_choose_what_they_would_alone(family: str, level: str) -> None:
    lm = lm_of(family)
    policy = policy_for(lm, level, "sample")
    policy.head.to(lm.dtype)
    assert sampled(TransformersEngine(lm, word_tokenizer()), policy) == alone(lm, policy)


@pytest.mark.parametrize("names", ["guidance_scale:1,1.7,3", "repetition_penalty:1,1.5"])
def test_knobs_that_read_earlier_tokens_or_second_logits_still_see_the_prompt(names: str) -> None:
    lm = lm_of("llama")
    policy = UniformPolicy(lk.KnobSpace.of({"temperature": [0.6, 1.5]}, names), Every(1))
    assert sampled(TransformersEngine(lm, word_tokenizer()), policy) == alone(lm, policy)


def test_each_distinct_prompt_is_read_once_and_not_again_for_the_next_policy() -> None:
    lm = lm_of("llama")
    engine = TransformersEngine(lm, word_tokenizer())
    first = columns_read(lm, lambda: sampled(engine, UniformPolicy(SPACE, Every(1))))
    assert first[:2] == [(len(MANY), 4), (len(COPIES), 1)]
    second = columns_read(lm, lambda: sampled(engine, GreedyPolicy()))
    assert second[0] == (len(COPIES), 1)
    assert sampled(engine, GreedyPolicy()) == alone(lm, GreedyPolicy())


def test_a_row_says_the_same_whatever_was_read_before() -> None:
    lm, policy = lm_of("llama"), UniformPolicy(SPACE, Every(1))
    engine = TransformersEngine(lm, word_tokenizer())
    found = [sampled(engine, policy), sampled(engine, policy, MANY), sampled(engine, policy)]
    assert found[0] == found[2] and found[1] == sampled(TransformersEngine(lm, word_tokenizer()), policy, MANY)


@pytest.mark.parametrize("rows", [[[5]] * 4, [[5], [7]]])
def test_a_prompt_of_one_token_leaves_nothing_to_share(rows: list[list[int]]) -> None:
    lm, policy = lm_of("llama"), UniformPolicy(SPACE, Every(1))
    assert sampled(TransformersEngine(lm, word_tokenizer()), policy, rows) == alone(lm, policy, rows)


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lm_of("llama")
    inputs = [torch.full((2, 6), n) for n in (3, 4, 5)]
    reader = PromptReader(lm)
    for ids_BP in inputs:
        reader.read(ids_BP, torch.ones_like(ids_BP))
    assert len(reader._kept) == 3
    [one] = {size_of(cache) for _, cache in reader._kept.values()}
    monkeypatch.setattr(prompt_reader, "KEPT", 2 * one)
    reader.read(inputs[1], torch.ones_like(inputs[1]))
    assert [int(cache.layers[0].keys.shape[0]) for _, cache in reader._kept.values()] == [1, 1]
    monkeypatch.setattr(prompt_reader, "KEPT", 0)
    assert reader.read(inputs[0], torch.ones_like(inputs[0])) and not reader._kept


@pytest.mark.parametrize("family", ["mamba", "static"])
def test_families_whose_cache_cannot_be_repeated_read_every_copy_and_say_so(family: str) -> None:
    lm = model_of("mamba") if family == "mamba" else lm_of("llama")
    if family == "static":
        lm.generation_config.update(cache_implementation="static", compile_config=None, disable_compile=True)
    rows, policy = [[3 + n // 4, 5, 9] for n in range(12)], UniformPolicy(SPACE, Every(1))
    prompt_reader.announce.cache_clear()
    engine = TransformersEngine(lm, word_tokenizer())
    with pytest.warns(UserWarning, match="Each copy of a prompt is read again: (Mamba|Llama)ForCausalLM keeps a"):
        found = sampled(engine, policy, rows)
    assert found == alone(lm, policy, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sampled(engine, policy, rows) == found


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_layer_with_room_holds_what_a_layer_without_holds(widths: list[int], selects: list[bool]) -> None:
    torch.manual_seed(len(widths))
    slow, first = DynamicLayer(), torch.randn(3, 2, 4, 2, dtype=torch.float64)
    slow.update(first, first + 1)
    fast = GrowingLayer.of(slow)
    for width, is_selected in zip(widths, selects, strict=False):
        new = torch.randn(len(slow.keys), 2, width, 2, dtype=torch.float64)
        for layer in (slow, fast):
            if is_selected:
                layer.batch_select_indices(torch.tensor([0, *range(1, len(new))]))
            keys, values = layer.update(new, -new)
            assert keys is layer.keys and values is layer.values
        assert torch.equal(slow.keys, fast.keys) and torch.equal(slow.values, fast.values)
        assert slow.get_seq_length() == fast.get_seq_length()
    assert torch.equal(slow.keys[:, :, :4], first)
