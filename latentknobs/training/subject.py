"""Digests of the inputs of a run, for the keys of its stages: the model, its tokenizer, the space, and prompts."""

import functools
import json
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentknobs.content import PLAIN, digest
from latentknobs.data.prompts import Prompt
from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.space import KnobSpace
from latentknobs.rewards.identity import content_hash

# where files came from, not what is in them; the number format is that of the weights
NAMES = {
    "_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype", "vocab_file", "merges_file",
    "tokenizer_file",
}  # fmt: skip
WEIGHTS = "weights"  # in an adapter's notes: the digest of those of its model
CALL = ("padding", "truncation")  # of a tokenizer's latest call


def model_input(prompts: Iterable[Prompt]) -> str:
    """A digest of what the model reads of prompts."""
    return digest(*((prompt.text, prompt.ids, *filter(None, [prompt.second_ids])) for prompt in prompts))


def reward_input(prompts: Iterable[Prompt]) -> str:
    """A digest of all that a reward reads of prompts: texts, messages, and columns by content."""
    return digest(*((p.text, p.messages, sorted(p.columns.items(), key=lambda item: str(item[0]))) for p in prompts))


def subject(model: Any, tokenizer: Any, space: KnobSpace, segmenter: Segmenter) -> str:
    """A digest of the model, its tokenizer, the space, and the level of choice."""
    return digest(model_content(model), tokenizer_content(tokenizer), space.fingerprint(), segmenter)


def model_content(model: Any) -> list[Any]:
    """Every bit of the weights, every field of the config and of the generation config, and the code's name; of every part its
    class, its hooks, and the plain values that it computes with, which may have changed since they were read from the config."""
    settings = [part.to_dict() for part in (model.config, model.generation_config) if part is not None]
    attention = getattr(model.config, "_attn_implementation", None)
    parts = [(name, type(part), _plain(part), *_changes(part)) for name, part in model.named_modules()]
    return [parts, str(model.dtype), attention, [_without_names(part) for part in settings], weights(model)]


def _plain(part: Any) -> dict[str, Any]:
    """Public numbers and texts of a module, without `training`, which is off whenever the model is read."""
    left_out = {"training", "gradient_checkpointing", *NAMES}
    return {k: v for k, v in vars(part).items() if isinstance(v, PLAIN) and k not in left_out and not k.startswith("_")}


def _changes(part: Any) -> list[Any]:
    """What a caller has put around a module: forward hooks, and the code of a method `forward` in place of its class's."""
    forward = vars(part).get("forward")
    while isinstance(forward, functools.partial | types.MethodType):  # accelerate's; what it is bound to is this model
        forward = forward.func if isinstance(forward, functools.partial) else forward.__func__
    hooks = [list(part._forward_pre_hooks.values()), list(part._forward_hooks.values())]
    return [hooks, getattr(forward, "__code__", type(forward))]


def tokenizer_content(tokenizer: Any) -> list[Any]:
    """How text becomes ids and ids become text: vocabulary, rules, special tokens, and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = [sorted(tokenizer.get_vocab().items()), _without_names(getattr(tokenizer, "init_kwargs", {}))]
    if backend is not None:
        rules = {name: value for name, value in json.loads(backend.to_str()).items() if name not in CALL}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    others = [
        getattr(tokenizer, name, None)
        for name in ("chat_template", "clean_up_tokenization_spaces", "pad_token_id", "split_special_tokens")
    ]
    return [type(tokenizer), rules, special, *others]


@torch.no_grad()
def weights(model: Any) -> str:
    """A digest of all weights and buffers; of those that a device map keeps elsewhere, of the model's folder."""
    tensors = dict(model.named_buffers()) | model.state_dict()
    return digest(*((name, _weight(value, model)) for name, value in tensors.items()))


def _weight(value: Any, model: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_meta:
        return content_hash(Path(model.config.name_or_path))
    return value.full_tensor() if hasattr(value, "full_tensor") else value  # tensor parallel: parts of one


def _without_names(settings: Any) -> Any:
    """Settings as nested dicts without what only names their origin."""
    if isinstance(settings, dict):
        return {name: _without_names(value) for name, value in settings.items() if name not in NAMES}
    return settings
