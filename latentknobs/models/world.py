"""Global state that a run may change while it works, and restores."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def left_as_it_was(model: Any = None) -> Iterator[None]:
    """A block `in_ordinary_mode` that leaves no trace: the random states of Python, numpy and torch are restored, and which parts
    of a model train and have gradients; a name of a model has no parts.
    """
    python, arrays = random.getstate(), np.random.get_state()
    modes = [(part, part.training) for part in model.modules()] if hasattr(model, "modules") else []
    gradients = [(weight, weight.requires_grad) for weight in model.parameters()] if modes else []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), in_ordinary_mode():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
            for part, mode in modes:
                part.training = mode
            for weight, has_gradient in gradients:
                weight.requires_grad_(has_gradient)


@contextmanager
def in_ordinary_mode() -> Iterator[None]:
    """A block in torch's ordinary mode whatever the caller's: gradients, float32, tensors on the CPU, no autocast."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for kind in ("cpu", *([accelerator.type] if accelerator else [])):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield
