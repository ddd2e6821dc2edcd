"""What `make data` fetches: a model of llama2.c comes out of its first format as it went in; what cannot be reached is said."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
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


SHA = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"  # of "text"


def item(file: str, make: Callable[[Path], None], sha256: str = SHA) -> data.Item:
    return data.Item(file, "somebody/texts", "main, train", "MIT", 4, sha256, make)


def write(path: Path) -> None:
    assert not path.exists()
    path.write_text("text")


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    assert data.fetch(item("a/b.txt", write), tmp_path).startswith("fetched")
    assert data.fetch(item("a/b.txt", write), tmp_path).startswith("there")
    for _ in range(2):
        different = data.fetch(item("a/c.txt", write, "0"), tmp_path)
        assert different.startswith("different") and different.endswith("Delete it to fetch it again")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"cut off")
    assert data.fetch(item("a/model.safetensors", write), tmp_path).startswith("different")


def test_what_stops_half_way_leaves_nothing_and_is_said(tmp_path: Path) -> None:
    def stops(path: Path) -> None:
        path.write_text("te")
        raise LocalEntryNotFoundError("The hub cannot be reached.\nMore.")

    said = data.fetch(item("a/d.txt", stops), tmp_path)
    assert said.startswith("missing") and said.endswith("LocalEntryNotFoundError: The hub cannot be reached")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_hub_that_cannot_be_reached_is_asked_once_and_each_missing_thing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data.constants, "ENDPOINT", "http://localhost:9")
    monkeypatch.setattr(data, "ITEMS", (item("b.txt", write), item("c.txt", write)))
    monkeypatch.setenv("LATENTKNOBS_DATA", str(tmp_path))
    (tmp_path / "c.txt").write_text("text")
    with pytest.raises(SystemExit, match=r"1 of 2 missing in .* http://localhost:9 cannot be reached from here .*there yourself"):
        data.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("missing   b.txt (https://huggingface.co/somebody/texts at main, main, train; MIT; 4 bytes)")
    assert second.startswith("there ")


def test_every_item_has_a_revision_and_a_hash() -> None:
    for one in data.ITEMS:
        assert re.fullmatch("[0-9a-f]{40}", data.REVISIONS[one.repository]) and re.fullmatch("[0-9a-f]{64}", one.sha256)
