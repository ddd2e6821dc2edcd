"""Reading the heads that the authors of AutoDeco released (arXiv 2510.26697), as a value head.

A checkpoint is a folder: `config.json` with `model_type: autodeco`, the base model's own settings, and `use_enhanced_features`;
and safetensors files, of the heads alone or of the merged model, with `temp_head.mlp.{0,2}.{weight,bias}` and the same of
`top_p_head`.

    T = 2 sigmoid(W2 relu(W1 h + b1) + b2)          P = the same without the 2, of [h, T, statistics of softmax(z / (T + 1e-8))]

Their heads read z as the output embeddings give it, before a family caps or scales its logits; so does ours.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentknobs.errors import AdapterError, first_line
from latentknobs.files import fit, public_name, read_json
from latentknobs.heads.value_head import STATISTICS, ValueHead
from latentknobs.knobs.space import KnobSpace

CONFIG = "config.json"
RANGES = ((0.0, 2.0), (0.0, 1.0))
PARTS = ("temp_head", "top_p_head")
LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")
CURE = "Give the folder of an AutoDeco checkpoint, as its authors publish it."
Size = Annotated[int, Field(ge=1, lt=2**31)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Config(BaseModel):
    model_type: str
    hidden_size: Size
    vocab_size: Size
    num_hidden_layers: Annotated[int, Field(ge=0, lt=2**31)]
    base_model_name_or_path: str | None = None
    base_model_type: str | None = None
    enable_temperature_head: bool = True
    enable_top_p_head: bool = True
    use_enhanced_features: bool = True
    final_logit_softcapping: Factor | None = None  # Gemma
    logit_scale: Factor | None = None  # Cohere multiplies
    logits_scaling: Factor | None = None  # Granite divides


def read_autodeco(folder: Path) -> tuple[ValueHead, dict[str, Any]]:
    """The head and its base model, as `describe_model` says it (type None where the folder does not); AdapterError if damaged."""
    config = _config(folder)
    space = KnobSpace.of("temperature", "top_p")
    tensors = _tensors(folder)
    parts = {part: _layers(tensors, part, folder) for part in PARTS}
    seen = (config.hidden_size, config.hidden_size + 1 + STATISTICS * config.use_enhanced_features)
    hidden = parts[PARTS[0]]["0.bias"].numel()
    for (part, layers), inputs in zip(parts.items(), seen, strict=True):
        wanted = {"0.weight": (hidden, inputs), "0.bias": (hidden,), "2.weight": (1, hidden), "2.bias": (1,)}
        for name, value in layers.items():
            if tuple(value.shape) != wanted[name]:
                raise AdapterError(
                    f"{part}.mlp.{name} in {str(folder)!r} has the shape {tuple(value.shape)}; for a hidden size of "
                    f"{config.hidden_size} and use_enhanced_features={config.use_enhanced_features} it must be {wanted[name]}. "
                    "The checkpoint is for another model, or damaged."
                )
            if not value.isfinite().all():
                raise AdapterError(
                    f"{part}.mlp.{name} in {str(folder)!r} has weights that are not numbers. Copy the folder again."
                )
    scale = config.logit_scale or 1 / (config.logits_scaling or 1)
    head = ValueHead(
        space, config.hidden_size, RANGES, hidden, config.use_enhanced_features, config.final_logit_softcapping, scale
    )  # fmt: skip
    head = head.to(parts[PARTS[0]]["0.weight"].dtype)
    for net, layers in zip(head.nets, parts.values(), strict=True):
        net.load_state_dict(layers)
    name = public_name(config.base_model_name_or_path or "") or folder.name
    base = {"name": name, "type": config.base_model_type, "hidden_size": config.hidden_size, "layers": config.num_hidden_layers,
            "vocabulary": config.vocab_size}  # fmt: skip
    return head.eval(), base


def _config(folder: Path) -> _Config:
    if not (folder / CONFIG).exists():
        raise AdapterError(f"There is no AutoDeco checkpoint in {str(folder)!r}: it has no {CONFIG}. {CURE}")
    found = read_json(folder / CONFIG, dict[str, Any], AdapterError, CURE)
    if found.get("model_type") != "autodeco":
        raise AdapterError(f"{str(folder)!r} holds a model of type {found.get('model_type')!r:.40}, not 'autodeco'. {CURE}")
    try:
        config: _Config = fit(found, _Config)
    except ValueError as error:
        raise AdapterError(f"The {CONFIG} in {str(folder)!r} is not that of an AutoDeco checkpoint: {error}. {CURE}") from None
    if not (config.enable_temperature_head and config.enable_top_p_head):
        raise AdapterError(
            f"The checkpoint in {str(folder)!r} was trained with enable_temperature_head={config.enable_temperature_head} and "
            f"enable_top_p_head={config.enable_top_p_head}: the other head holds random weights. Use one with both."
        )
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of both heads, by what follows `temp_head` or `top_p_head` and these themselves; base weights are not read."""
    found: dict[str, Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    part = next((part for part in PARTS if part in key.split(".")), None)
                    if part is not None:
                        found[key[key.index(part) :]] = file.get_tensor(key)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise AdapterError(f"A file in {str(folder)!r} is damaged: {first_line(error)}. Copy the folder again.") from None
    return found


def _layers(tensors: dict[str, Tensor], part: str, folder: Path) -> dict[str, Tensor]:
    found = {name: tensors.get(f"{part}.mlp.{name}") for name in LAYERS}
    if missing := [name for name, value in found.items() if value is None]:
        raise AdapterError(f"No safetensors file in {str(folder)!r} holds {part}.mlp.{missing[0]}. {CURE}")
    layers = {name: value for name, value in found.items() if value is not None}
    if any(value.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64) for value in layers.values()):
        raise AdapterError(f"The weights of {part} in {str(folder)!r} are not floating point numbers. {CURE}")
    return layers
