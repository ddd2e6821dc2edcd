"""Global state that a run may change while it works, and restores."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def left_as_it_was(model: Any = None) -> Iterator[None]:
    """Restores the random states of Python, numpy and torch, and which parts of a model train and have gradients."""
    python, arrays = random.getstate(), np.random.get_state()
    modes = [(part, part.training) for part in model.modules()] if hasattr(model, "modules") else []
    gradients = [(weight, weight.requires_grad) for weight in model.parameters()] if modes else []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
            for part, mode in modes:
                part.training = mode
            for weight, has_gradient in gradients:
                weight.requires_grad_(has_gradient)
