"""Arrays and tensors, number formats and tokenizers as bytes."""

from __future__ import annotations

import sys
from typing import Any

from latentknobs.rewards.state import full_name


def numbers(value: Any) -> tuple[str, bytes] | None:
    """A kind and its content; None for anything else, e.g. a subclass with a life of its own."""
    name = full_name(type(value))
    if "numpy" not in sys.modules or name.split(".")[0] not in ("numpy", "torch", "tokenizers"):
        return None
    if name in ("torch.dtype", "torch.device", "torch.Size", "torch.layout", "tokenizers.AddedToken") or _is_dtype(value):
        return name, repr(value).encode()
    if name == "tokenizers.Tokenizer":
        return name, value.to_str().encode()
    if name in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        return _tensor(value)
    return _array(value)


def _is_dtype(value: Any) -> bool:
    import numpy as np

    return isinstance(value, np.dtype) and not value.hasobject


def _tensor(value: Any) -> tuple[str, bytes] | None:
    import torch

    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return None
    bits = value.detach().cpu().contiguous().resolve_conj().resolve_neg().flatten().view(torch.uint8).numpy().tobytes()
    return "tensor", f"{value.dtype} {tuple(value.shape)} {value.requires_grad} ".encode() + bits


def _array(value: Any) -> tuple[str, bytes] | None:
    import numpy as np

    kind = type(value)
    if (kind is not np.ndarray and not issubclass(kind, np.generic)) or value.dtype.hasobject:
        return None
    return "array", f"{kind.__name__} {value.dtype.descr} {value.shape} ".encode() + value.tobytes()
