"""Released AutoDeco checkpoints: parity with an independent restatement of the published modules, and every reason to refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_lm
from torch import Tensor, nn

import latentknobs as lk
from latentknobs.errors import AdapterError

D, V = 16, 24


class Published:
    """What the released code computes, restated: `forward` of both heads on hidden states and uncapped logits."""

    def __init__(self, dtype: torch.dtype, enhanced: bool = True) -> None:
        torch.manual_seed(4)
        self.enhanced = enhanced
        self.temp, self.top_p = (
            nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 1), nn.Sigmoid()).to(dtype)
            for inputs in (D, D + 1 + 4 * enhanced)
        )
        for net in (self.temp, self.top_p):
            nn.init.normal_(net[0].weight, std=0.4)
            nn.init.normal_(net[2].weight, std=0.4)

    @torch.no_grad()
    def __call__(self, hidden_ND: Tensor, logits_NV: Tensor) -> Tensor:
        temperature_N1 = self.temp(hidden_ND) * 2
        features = [hidden_ND, temperature_N1]
        if self.enhanced:
            probs = torch.softmax(logits_NV / (temperature_N1 + 1e-8), dim=-1)
            log_probs = torch.log(probs + 1e-8)
            top5 = torch.topk(probs, min(5, probs.size(-1)), dim=-1)[0].sum(dim=-1, keepdim=True)
            entropy = -(probs * log_probs).sum(dim=-1, keepdim=True)
            features += [probs.max(dim=-1, keepdim=True)[0], entropy, probs.var(dim=-1, keepdim=True), top5]
        return torch.cat([temperature_N1, self.top_p(torch.cat(features, dim=-1))], -1)

    def save(self, folder: Path, prefix: str = "", **config: Any) -> Path:
        """As released: the heads alone, or, with other weights beside them, merged into files of the base model."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            f"{prefix}{part}.mlp.{name}": value
            for part, net in (("temp_head", self.temp), ("top_p_head", self.top_p))
            for name, value in net.state_dict().items()
        }
        if prefix:
            save_file({"llm.model.embed.weight": torch.zeros(3, 3)}, folder / "model-00001-of-00002.safetensors")
        save_file(weights, folder / ("model-00002-of-00002.safetensors" if prefix else "heads.safetensors"))
        known = {"model_type": "autodeco", "base_model_name_or_path": "/models/tiny", "base_model_type": "llama",
                 "enable_temperature_head": True, "enable_top_p_head": True, "use_enhanced_features": self.enhanced,
                 "hidden_size": D, "vocab_size": V, "num_hidden_layers": 2, "torch_dtype": "float32"}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(known | config))
        return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("enhanced", [True, False])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_values_are_those_of_the_published_modules(tmp_path, dtype: torch.dtype, enhanced: bool, prefix: str) -> None:
    theirs = Published(dtype, enhanced)
    adapter = lk.KnobAdapter.from_autodeco(theirs.save(tmp_path, prefix))
    hidden_ND, logits_NV = torch.randn(50, D).to(dtype), (4 * torch.randn(50, V)).to(dtype)
    expected_N2 = theirs(hidden_ND, logits_NV)
    for one in (adapter, lk.KnobAdapter.from_pretrained(adapter.save_pretrained(tmp_path / "ours"))):
        choice = one.policy().choose(lk.Context(hidden_ND=hidden_ND, logits_NV=logits_NV), torch.zeros(50).double())
        torch.testing.assert_close(choice.value_NJ, expected_N2.float(), atol=1e-6, rtol=1e-6)
    assert adapter.space.names == ("temperature", "top_p") and expected_N2.std(0).min() > 0.05


@pytest.mark.parametrize(("config", "final"), [
    ({"final_logit_softcapping": 8.0}, lambda raw: 8 * torch.tanh(raw / 8)),
    ({"logit_scale": 0.25}, lambda raw: 0.25 * raw),
    ({"logits_scaling": 16.0}, lambda raw: raw / 16.0),
])  # fmt: skip
def test_heads_read_logits_before_a_familys_cap_and_scale(tmp_path, config: dict[str, float], final: Any) -> None:
    theirs = Published(torch.float32)
    policy = lk.KnobAdapter.from_autodeco(theirs.save(tmp_path, **config)).policy()
    hidden_ND, raw_NV = torch.randn(50, D), 4 * torch.randn(50, V)
    choice = policy.choose(lk.Context(hidden_ND=hidden_ND, logits_NV=final(raw_NV)), torch.zeros(50).double())
    torch.testing.assert_close(choice.value_NJ, theirs(hidden_ND, raw_NV), atol=1e-5, rtol=1e-4)


def test_it_decodes_which_the_published_generate_does_not(tmp_path) -> None:
    model = tiny_lm("llama")
    adapter = lk.KnobAdapter.from_autodeco(Published(torch.float32).save(tmp_path), model)
    with adapter.attach(model, strict=False, seed=3) as knobs:
        out_BL = model.generate(torch.tensor([[5, 9, 7]]), max_new_tokens=6)
        record = knobs.record(out_BL, 3)
    assert record.value_BTJ.std(1).min() > 0 and record.logps_BT.isfinite().all()


def change_config(**change: Any) -> Any:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "drop"}))

    return edit


def change_weight(name: str, change: Any) -> Any:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "heads.safetensors")
        value = weights.pop(name)
        save_file(weights | ({} if change is None else {name: change(value)}), folder / "heads.safetensors")

    return edit


@pytest.mark.parametrize(("edit", "message"), [
    (change_config(model_type="llama"), "holds a model of type 'llama', not 'autodeco'"),
    (change_config(hidden_size=32), r"temp_head.mlp.0.weight .* has the shape \(256, 16\); for a hidden size of 32"),
    (change_config(hidden_size="drop"), "is not that of an AutoDeco checkpoint: hidden_size"),
    (change_config(use_enhanced_features=False), r"top_p_head.mlp.0.weight .* has the shape \(256, 21\).*must be \(256, 17\)"),
    (change_config(enable_top_p_head=False), "enable_top_p_head=False: the other head holds random weights"),
    (change_config(base_model_type=None), "does not name the family of its model. Pass model="),
    (change_config(final_logit_softcapping=-1), "final_logit_softcapping"),
    (change_weight("temp_head.mlp.2.bias", None), "holds temp_head.mlp.2.bias"),
    (change_weight("top_p_head.mlp.0.bias", lambda value: value * torch.nan), "top_p_head.mlp.0.bias .* that are not numbers"),
    (change_weight("top_p_head.mlp.0.bias", lambda value: value.long()), "weights of top_p_head .* are not floating point"),
    (lambda folder: (folder / "heads.safetensors").write_bytes(b"no"), "is damaged"),
    (lambda folder: (folder / "heads.safetensors").unlink(), "No safetensors file in"),
    (lambda folder: (folder / "config.json").unlink(), "There is no AutoDeco checkpoint in"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
])  # fmt: skip
def test_what_is_not_such_a_checkpoint_is_refused(tmp_path, edit: Any, message: str) -> None:
    edit(Published(torch.float32).save(tmp_path))
    with pytest.raises(AdapterError, match=message):
        lk.KnobAdapter.from_autodeco(tmp_path)


def test_a_model_of_another_shape_is_refused(tmp_path) -> None:
    folder = Published(torch.float32).save(tmp_path, num_hidden_layers=3)
    with pytest.raises(AdapterError, match="number of layers 3, but the model"):
        lk.KnobAdapter.from_autodeco(folder, tiny_lm("llama"))
