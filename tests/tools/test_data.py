"""What `make data` fetches: a model of llama2.c comes out of its first format as it went in; what cannot be reached is said."""

import struct
from pathlib import Path

import torch
from einops import rearrange
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tools import data

WORDS = ["▁", "t", "h", "e", "a", "▁t", "he", "▁the", "c", "▁a"]


def legacy(model: LlamaForCausalLM) -> bytes:
    """A model as llama2.c writes it."""
    config, state = model.config, model.state_dict()
    head = config.hidden_size // config.num_attention_heads
    shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads,
             config.num_key_value_heads, config.vocab_size, config.max_position_embeddings)  # fmt: skip
    parts = [state["model.embed_tokens.weight"]]
    for name in ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj"):  # fmt: skip
        for layer in range(config.num_hidden_layers):
            value = state[f"model.layers.{layer}.{name}.weight"]
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                value = rearrange(value, "(h two d) w -> (h d two) w", d=head // 2, two=2)
            parts.append(value)
    parts.append(state["model.norm.weight"])
    return struct.pack("7i", *shape) + torch.cat([part.flatten() for part in parts]).numpy().tobytes()


def vocabulary(tokens: list[str]) -> bytes:
    rows = [token.replace("▁", " ").encode() for token in tokens]
    return struct.pack("i", 9) + b"".join(struct.pack("fi", -float(n), len(row)) + row for n, row in enumerate(rows))


def test_a_llama2c_model_comes_out_as_it_went_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    data.convert(legacy(model), vocabulary(tokens), tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the hat")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁the", "▁", "h", "a", "t"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the hat"


def test_what_is_there_is_not_fetched_again_and_what_cannot_be_reached_is_said(
    tmp_path: Path,
) -> None:
    calls = []

    def write(path: Path) -> None:
        calls.append(path)
        path.write_text("text")

    def unreachable(path: Path) -> None:
        raise LocalEntryNotFoundError("The hub cannot be reached.\nMore.")

    sha = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    item = data.Item("a/b.txt", "hub: x", "MIT", 4, sha, write)
    assert data.fetch(item, tmp_path).startswith("fetched") and data.fetch(item, tmp_path).startswith("there") and len(calls) == 1
    other = data.Item("a/c.txt", "hub: x", "MIT", 4, "0", write)
    assert data.fetch(other, tmp_path).startswith("different")
    gone = data.Item("a/d.txt", "hub: x", "MIT", 4, "0", unreachable)
    assert data.fetch(gone, tmp_path).endswith("LocalEntryNotFoundError: The hub cannot be reached.")
