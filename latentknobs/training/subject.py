"""What a run is about, as digests: the model with its weights, its tokenizer, the space, and prompts."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentknobs.adapter import describe_model
from latentknobs.data.prompts import Prompt
from latentknobs.knobs.space import KnobSpace
from latentknobs.rewards.identity import content_hash


def digest(parts: Iterable[Any]) -> str:
    """A hash of some values by what they look like in Python, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(repr(part).encode())
        found.update(b"\n")
    return found.hexdigest()[:16]


def asked_of_model(prompts: Iterable[Prompt]) -> str:
    """A digest of what the model reads of prompts."""
    return digest((prompt.text, prompt.ids) for prompt in prompts)


def asked_of_reward(prompts: Iterable[Prompt]) -> str:
    """A digest of all that a reward may be told about prompts."""
    told = ((p.text, p.messages, sorted(p.columns.items(), key=lambda item: str(item[0]))) for p in prompts)
    return digest(told)


def subject(model: Any, tokenizer: Any, space: KnobSpace) -> str:
    """A digest of the model, every bit of its weights, its generation settings, its tokenizer and the space."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    settings = sorted(model.generation_config.to_diff_dict().items())
    special = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id]
    return digest([describe_model(model), str(model.dtype), weights(model), settings, words, special, space.fingerprint()])


@torch.no_grad()
def weights(model: Any) -> str:
    """A hash of all weights and buffers; of those that a device map keeps elsewhere, of the model's folder."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        if value.is_meta:
            found.update(str(content_hash(Path(model.config.name_or_path))).encode())
        else:
            whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value  # tensor parallel: parts of one
            found.update(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
