"""Models in GGUF: a tiny file that the test writes comes out as the weights that went in; what cannot be read is said."""

from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from transformers import LlamaConfig, LlamaForCausalLM

from latentknobs.config import make_config
from latentknobs.errors import ConfigError
from latentknobs.models.loading import load_model, split_gguf
from tools import instruct

TOKENS = ["<s>", "</s>", "a", "b", "c", "ab", "Ġ", "Ċ", "ĠĊ"]
MERGES = ["a b", "Ġ Ċ"]  # one alone is read as a text


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )).eval()  # fmt: skip


@pytest.mark.parametrize("is_path", [True, False])
def test_the_weights_and_the_tokens_of_a_file_come_out(tmp_path: Path, is_path: bool) -> None:
    model, file = tiny(), tmp_path / "tiny.gguf"
    write_gguf(file, model, TOKENS, MERGES)
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
    write_gguf(tmp_path / instruct.FILE, model, TOKENS, MERGES)
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
    monkeypatch.setattr("latentknobs.models.loading.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package gguf. pip install 'latentknobs\[gguf\]'"):
        split_gguf(str(tmp_path / "right.gguf"), None)
    monkeypatch.undo()
    if split_gguf(str(tmp_path), None) == (str(tmp_path), None):
        pytest.importorskip("gguf")
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load_model(str(tmp_path / "right.gguf"), make_config({}))
