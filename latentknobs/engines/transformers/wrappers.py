"""The causal LM inside whatever a user holds: a pipeline, or a PEFT, DDP, FSDP or compiled wrapper."""

from typing import Any

import torch
from torch import nn

from latentknobs.engines.transformers.frozen import output_embeddings
from latentknobs.errors import DecodingError


def layers_of(model: Any) -> list[Any]:
    """The model and everything inside it that stands for it, the causal LM last.

    AdapterError or DecodingError if that is not a causal LM that can `generate`, or its prompt is changed on the way.
    """
    layers = [model]
    while (inner := _inside(layers[-1])) is not None:
        layers.append(inner)
    name, config = type(layers[-1]).__name__, getattr(layers[-1], "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise DecodingError(
            f"{name} is an encoder-decoder model, and policies decode with causal LMs only: its decoder begins anew where the "
            "response does. Use a model of AutoModelForCausalLM."
        )
    output_embeddings(layers[-1])
    if not hasattr(layers[-1], "generate"):
        raise DecodingError(
            f"{name} cannot generate text, so there is nothing to attach a policy to. Load a causal LM, e.g. with "
            "AutoModelForCausalLM.from_pretrained(...)."
        )
    return layers


def is_pipeline(model: Any) -> bool:
    """Whether this is a pipeline of transformers."""
    from transformers import Pipeline

    return isinstance(model, Pipeline)


def _inside(model: Any) -> Any:
    """What a wrapper wraps; None where the model wraps nothing."""
    if is_pipeline(model):
        return model.model
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):  # PEFT, which need not be installed
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise DecodingError(
                f"{type(model).__name__} puts learned embeddings in front of the prompt, so that the positions that a policy "
                "reads would be others. Merge it into its base model, or use an adapter that changes weights (LoRA)."
            )
        return model.get_base_model()
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or _is_fsdp(model):
        return model.module
    return getattr(model, "_orig_mod", None)  # torch.compile


def _is_fsdp(model: Any) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(model, FullyShardedDataParallel)
