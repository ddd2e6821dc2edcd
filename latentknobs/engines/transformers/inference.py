"""When `generate` may run in torch's inference mode, in which operations start quicker than under `no_grad`.

Where the host sets the pace (small models, few rows, fast GPUs) that is up to a fifth of a step. Tensors made in it are of no
use to autograd ever after, so it is chosen where all that can see one is known: the caller gets ids back, which are copied, and
gives `generate` nothing but ids and plain values; model, policy and knobs are transformers' and this package's own. What
these keep is made ordinary when the call ends.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as global_hooks

from latentknobs.engines.transformers.modes import setting
from latentknobs.knobs.registry import is_shipped
from latentknobs.policies import Policy

IDS = ("input_ids", "inputs", "attention_mask", "inputs_embeds")  # tensors that a call may give
PLAIN = (bool, int, float, str, type(None))
STATELESS = ("transformers.models.", "transformers.activations", "transformers.pytorch_utils", "torch.nn.modules.")  # modules
HOOKS = (
    "latentknobs.engines.transformers.",
    "transformers.utils.output_capturing",
)  # those of transformers only look
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3")
METHODS = ("log_pi", "choose", "warp")


def leaves_nothing(model: Any, policy: Policy, configs: Iterable[Any] = (), kwargs: dict[str, Any] | None = None) -> bool:
    """Whether neither an attached model nor its policy shows tensors to anybody, or keeps them where they are not found again.

    That is known of modules of transformers (code that came with a model may do anything while it runs) without hooks or
    a forward of somebody else's (compiled, offloaded), with ordinary weights (not quantised or distributed) and a dynamic
    cache; and of this package's policies, heads, segmenters and knobs.

    Args:
        configs, kwargs: where the settings of `generate` come from, as in `setting`; without any, the model's own config.
    """
    configs, kwargs = tuple(configs) or (model.generation_config,), kwargs or {}
    return (
        not getattr(policy, "keeps_rows", True)
        and not any(name in vars(policy) for name in METHODS)
        and all(
            is_shipped(type(part)) for part in (policy, policy.segmenter, getattr(policy, "head", policy), *policy.space.knobs)
        )
        and setting("cache_implementation", kwargs, configs, "dynamic") == "dynamic"
        and setting("watermarking_config", kwargs, configs, None) is None
        and getattr(model.config, "_attn_implementation", None) in ATTENTION
        and not (global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks)
        and all(_is_stateless(module) for module in model.modules())
        and all(type(part) is torch.nn.Parameter for part in model.parameters())
        and all(type(part) is Tensor for part in model.buffers())
    )


def goes_unseen(model: Any, policy: Policy, generate: Any, kwargs: dict[str, Any], configs: Iterable[Any]) -> bool:
    """Whether nobody could tell that this call of `generate` ran in inference mode, but for the ids it returns.

    Args:
        generate: what will be called, which models and their repositories may have of their own.
        configs: where settings come from that the call does not give, the first one first.
    """
    configs = [config for config in configs if config is not None]
    return (
        getattr(generate, "__module__", None) == "transformers.generation.utils"
        and all(name in IDS or _is_plain(value) for name, value in kwargs.items())
        and kwargs.get("custom_generate") is None
        and not setting("return_dict_in_generate", kwargs, configs, False)
        and leaves_nothing(model, policy, configs, kwargs)
    )


@contextmanager
def quickly(may: bool, model: Any, *owners: Any) -> Iterator[None]:
    """Inference mode, if it may be; afterwards, what the model's modules and these objects have kept of it is ordinary again."""
    if not may:
        yield
        return
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in model.modules():
            make_ordinary(module._buffers)
            make_ordinary(vars(module))
        for owner in owners:
            make_ordinary(vars(owner))


def make_ordinary(table: dict[str, Any]) -> None:
    """Puts copies in the place of tensors that were made in inference mode, outside of it."""
    for name, value in table.items():
        if isinstance(value, Tensor) and value.is_inference():
            table[name] = value.clone()


def _is_plain(value: Any) -> bool:
    return all(type(item) in PLAIN for item in value) if isinstance(value, list | tuple) else type(value) in PLAIN


def _is_stateless(module: torch.nn.Module) -> bool:
    is_as_written = module._compiled_call_impl is None and "forward" not in vars(module)
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return (
        is_as_written
        and type(module).__module__.startswith(STATELESS)
        and all((getattr(hook, "__module__", None) or "").startswith(HOOKS) for hook in hooks)
    )
