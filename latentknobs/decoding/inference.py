"""When `generate` may run in torch's inference mode, in which operations start quicker than under `no_grad`.

Where the host sets the pace (small models, few rows, fast GPUs) that is up to a fifth of a step. Tensors made in it are of no
use to autograd ever after, so it is chosen where none can outlive the call: not in what the caller gets back (ids are copied),
not in objects of the caller, and not inside the model.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from latentknobs.decoding.modes import setting
from latentknobs.policies import Policy

# arguments of `generate` that see tensors and may keep them
OBJECTS = (
    "assistant_model", "custom_generate", "logits_processor", "past_key_values", "prefix_allowed_tokens_fn", "stopping_criteria",
    "streamer",
)  # fmt: skip
STATELESS = ("transformers.models.", "transformers.activations", "transformers.pytorch_utils", "torch.nn.modules.")  # modules
HOOKS = ("latentknobs.decoding.", "transformers.utils.output_capturing")  # transformers' stay, and only look when asked to


def leaves_nothing(model: Any, policy: Policy) -> bool:
    """Whether neither an attached model nor its policy keeps tensors from one call to another, or shows them to anybody.

    That is known of modules of transformers (code that came with a model may grow its tables while it runs) without hooks or
    a forward of somebody else's (compiled, offloaded), with ordinary weights (not quantised or distributed), and of this
    package's policies and heads.
    """
    return (
        not policy.keeps_rows
        and all(type(part).__module__.startswith("latentknobs.") for part in (policy, getattr(policy, "head", policy)))
        and all(_is_stateless(module) for module in model.modules())
        and all(type(part) is torch.nn.Parameter for part in model.parameters())
        and all(type(part) is torch.Tensor for part in model.buffers())
    )


def goes_unseen(model: Any, policy: Policy, kwargs: dict[str, Any], configs: Iterable[Any]) -> bool:
    """Whether nobody could tell that this call of `generate` ran in inference mode, but for the ids it returns.

    Args:
        configs: where settings come from that the call does not give, the first one first.
    """
    return (
        all(kwargs.get(name) is None for name in OBJECTS)
        and not setting("return_dict_in_generate", kwargs, configs, False)
        and setting("cache_implementation", kwargs, configs, "dynamic") == "dynamic"
        and leaves_nothing(model, policy)
    )


def quickly(may: bool) -> AbstractContextManager[Any]:
    """Inference mode, if it may be."""
    return torch.inference_mode() if may else nullcontext()


def _is_stateless(module: torch.nn.Module) -> bool:
    is_as_written = module._compiled_call_impl is None and "forward" not in vars(module)
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return (
        is_as_written
        and type(module).__module__.startswith(STATELESS)
        and all(getattr(hook, "__module__", "").startswith(HOOKS) for hook in hooks)
    )
