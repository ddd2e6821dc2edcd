"""Shared by all tests: quick, repeatable hypothesis settings, one thread, and tiny random language models."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=40,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
torch.set_num_threads(1)

VOCAB, WIDTH = 24, 16
FAMILIES = ("llama", "gpt2", "gemma2")


def tiny_lm(family: str, seed: int = 0) -> torch.nn.Module:
    """A random causal LM of two layers, whose next-token distributions are peaked enough for truncation to matter.

    Gemma 2 caps its logits *after* the output embeddings, so whoever rebuilds logits from hidden states gets it wrong.
    """
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    rotary = {**shape, **ids, "vocab_size": VOCAB, "num_key_value_heads": 1, "max_position_embeddings": 128}
    torch.manual_seed(seed)
    match family:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**rotary))
        case "gemma2":
            capped = {"head_dim": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0, "sliding_window": 8}
            model = Gemma2ForCausalLM(Gemma2Config(**rotary, **capped, query_pre_attn_scalar=8))
        case "gpt2":
            model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=WIDTH, n_layer=2, n_head=2, **ids))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=1.0 if "embed" in name or "wte" in name or "lm_head" in name else 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def lms() -> dict[str, torch.nn.Module]:
    """One tiny LM per family. Whoever attaches to one must detach."""
    return {family: tiny_lm(family) for family in FAMILIES}


@pytest.fixture
def lm(lms: dict[str, torch.nn.Module]) -> torch.nn.Module:
    """The tiny Llama."""
    return lms["llama"]
