"""Models in GGUF: a tiny file that the test writes comes out as the weights that went in; what cannot be read is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from latentknobs.config import make_config
from latentknobs.errors import ConfigError
from latentknobs.models.gguf import split_gguf
from latentknobs.models.loading import load_model
from tools import instruct

TOKENS = ["<s>", "</s>", "a", "b", "c", "ab", "Ġ", "Ċ", "ĠĊ"]


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )).eval()  # fmt: skip


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """The model with a small byte-pair tokenizer, as llama.cpp writes it, in float32."""
    gguf: Any = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    config, heads = model.config, model.config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(["a b", "Ġ Ċ"])  # one alone is read as a text
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for name, short in names.items():
        value = state[f"model.layers.0.{name}.weight"]
        if short in ("attn_q", "attn_k"):  # llama.cpp pairs the neighbours of a rotation
            rows, width = value.shape
            value = value.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width).copy()
        writer.add_tensor(f"blk.0.{short}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("is_path", [True, False])
def test_the_weights_and_the_tokens_of_a_file_come_out(tmp_path: Path, is_path: bool) -> None:
    model, file = tiny(), tmp_path / "tiny.gguf"
    write_gguf(file, model)
    named = {"model": str(file)} if is_path else {"model": str(tmp_path), "gguf_file": "tiny.gguf"}
    config = make_config(named)
    found, tokenizer = load_model(config.model, config)
    ids = torch.tensor([[0, 2, 3, 5, 4]])
    torch.testing.assert_close(found(input_ids=ids).logits, model(input_ids=ids).logits)
    assert tokenizer("abc")["input_ids"][-2:] == [5, 4] and tokenizer.padding_side == "left"
    assert not any(weight.requires_grad for weight in found.parameters())


def test_a_prepared_model_is_the_file_in_bfloat16_and_a_second_call_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny(), tmp_path / instruct.NAME
    write_gguf(tmp_path / instruct.FILE, model)
    monkeypatch.setenv("LATENTKNOBS_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="not b179c95"):
        instruct.main()
    monkeypatch.setattr(
        instruct.fetch, "__defaults__", (instruct.hashlib.sha256((tmp_path / instruct.FILE).read_bytes()).hexdigest(),)
    )
    (tmp_path / f"{instruct.NAME}.partial").mkdir()  # an interrupted call
    instruct.main()
    found, _ = load_model(str(out), make_config({"model": str(out)}))
    assert found.dtype == torch.bfloat16 and not (tmp_path / f"{instruct.NAME}.partial").exists()
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value.to(torch.bfloat16)), name
    (tmp_path / instruct.FILE).unlink()
    instruct.main()
    assert capsys.readouterr().out.count(str(out)) == 4


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "right.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"no file 'rigth.gguf' in .*Did you mean .right.gguf"):
        split_gguf(str(tmp_path), "rigth.gguf")
    with pytest.raises(ConfigError, match="is a GGUF file already"):
        split_gguf(str(tmp_path / "right.gguf"), "left.gguf")
    monkeypatch.setattr("latentknobs.models.gguf.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package gguf. pip install 'latentknobs\[gguf\]'"):
        split_gguf(str(tmp_path / "right.gguf"), None)
    monkeypatch.undo()
    if split_gguf(str(tmp_path), None) == (str(tmp_path), None):
        pytest.importorskip("gguf")
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load_model(str(tmp_path / "right.gguf"), make_config({}))
