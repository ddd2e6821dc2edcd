"""A digest of what decides the choices of a policy: the key of whatever is cached of them."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.space import KnobSpace


def digest(thing: Any) -> str:
    """64 hex digits of a thing's content, equal only for equal content; TypeError for what has none, such as a function."""
    found = hashlib.sha256()
    for part in _parts(thing):
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _parts(thing: Any) -> Iterator[bytes]:
    yield f"{type(thing).__module__}.{type(thing).__qualname__}".encode()
    if thing is None or isinstance(thing, bool | int | float | str):
        yield repr(thing).encode()
    elif isinstance(thing, Tensor):
        yield f"{tuple(thing.shape)} {thing.dtype}".encode()
        yield thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(thing, KnobSpace):
        yield thing.fingerprint().encode()
    elif isinstance(thing, Segmenter):
        yield thing.level.encode()
        yield from _table(vars(thing))
    elif isinstance(thing, list | tuple):
        yield str(len(thing)).encode()
        for item in thing:
            yield from _parts(item)
    elif isinstance(thing, Mapping):
        yield from _table(thing)
    elif isinstance(thing, nn.Module):
        plain = {name: value for name, value in vars(thing).items() if name != "training"}
        yield from _table(plain | dict(thing._parameters) | dict(thing._buffers) | dict(thing._modules))
    elif type(thing).__module__ != "builtins" and hasattr(thing, "__dict__") and not callable(thing):
        yield from _table(vars(thing))
    else:
        raise TypeError(f"The content of {thing!r} cannot be read, so its policy needs an `identity` of its own.")


def _table(table: Mapping[Any, Any]) -> Iterator[bytes]:
    """Names and contents; a name with an underscore is a cache."""
    public = {str(name): value for name, value in table.items() if not str(name).startswith("_")}
    yield str(len(public)).encode()
    for name in sorted(public):
        yield name.encode()
        yield from _parts(public[name])
