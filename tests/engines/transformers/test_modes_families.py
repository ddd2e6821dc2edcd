"""Decoding with a policy in other model families: caches of other kinds, logits rescaled after the output embeddings."""

from typing import Any

import pytest
import torch
import transformers
from decoding_oracle import left_padded, policy_for
from test_modes import assert_reproduced, generated
from tiny_models import STOPS, VOCAB
from torch import nn

SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SHAPE, "num_key_value_heads": 1, "head_dim": 8}
GEMMA: dict[str, Any] = {**GROUPED, "query_pre_attn_scalar": 8, "sliding_window": 8, "final_logit_softcapping": 3.0}
MAMBA = {"vocab_size": VOCAB, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "qwen3": ("Qwen3", GROUPED),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", GEMMA),
    "cohere": ("Cohere", {**GROUPED, "logit_scale": 0.3}),
    "granite": ("Granite", {**GROUPED, "logits_scaling": 4.0}),
    "neox": ("GPTNeoX", SHAPE),
    "mamba": ("Mamba", MAMBA),
}


def model_of(family: str) -> nn.Module:
    """A random model with next-token distributions peaked enough for truncation to matter."""
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        name, settings = FAMILIES[family]
        config_name = f"{name}TextConfig" if name == "Gemma3" else f"{name}Config"
        model_name = f"{name}ForCausalLM"
        model = getattr(transformers, model_name)(getattr(transformers, config_name)(**settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2 and "mamba" not in family:
                weight.normal_(std=0.4)
        model.get_output_embeddings().weight.normal_(std=1.0)
    model.generation_config.eos_token_id = STOPS
    return model.eval()


@pytest.mark.parametrize("level", ["token", "sequence", "delimiter:."])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_every_family_samples_what_its_seed_says(family: str, level: str) -> None:
    model = model_of(family)
    policy = policy_for(model, level, "sample")
    inputs = left_padded([[5, 9, 7], [11, 3, 17]]) if family == "mamba" else left_padded()  # a state has no padding
    prompts = [[5, 9, 7], [11, 3, 17]] if family == "mamba" else None
    found = generated(model, policy, inputs=inputs)
    assert_reproduced(model, policy, *found, **({"prompts": prompts} if prompts else {}))
    assert max(map(len, found[0])) > 1
