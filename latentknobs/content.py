"""Hashes of values by their content: two values have one hash exactly where they are of one kind and hold the same.

Not by `repr`, which leaves out the middle of large arrays and the inside of most objects.
"""

import dataclasses
import hashlib
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str)  # of exactly these types
NAMED = (type, types.BuiltinFunctionType, torch.dtype, torch.device, np.dtype)


def digest(*values: Any) -> str:
    """16 hex digits for some values, in their order. An object that cannot be taken apart (a lock, a stream) has no content:
    its hash is new in every call, so what depends on it is computed again."""
    found = hashlib.sha256()
    for piece in _pieces(values, ()):
        found.update(len(piece).to_bytes(8, "little"))
        found.update(piece)
    return found.hexdigest()[:16]


def _pieces(value: Any, above: tuple[int, ...]) -> Iterator[bytes]:
    """The content of a value; `above` holds the objects that it is inside of, because some contain themselves."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if id(value) in above:
        yield f"the {above.index(id(value))}th around it".encode()
        return
    yield kind.encode()
    inside = (*above, id(value))
    if isinstance(value, PLAIN) and type(value) in PLAIN:
        yield repr(value).encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype.descr} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _pieces(key, inside)
            yield from _pieces(item, inside)
        yield b"end"
    elif isinstance(value, Set):
        yield from sorted(digest(item).encode() for item in value)
        yield b"end"
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _pieces(item, inside)
        yield b"end"
    elif isinstance(value, types.FunctionType):  # globals that it reads do not count
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        yield from _pieces([value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells], inside)
    elif isinstance(value, types.CodeType):
        yield from _pieces([value.co_code, value.co_names, value.co_consts], inside)
    elif isinstance(value, NAMED):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}".encode()
    else:
        yield from _pieces(_parts(value), inside)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a name that has no value yet
        return False


def _parts(value: Any) -> Any:
    """What an object of any other kind holds."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    try:
        make, arguments, *rest = value.__reduce_ex__(2)  # what copy and pickle would receive; nothing is called
    except Exception:  # of whatever kind the object raises: it cannot be copied
        return uuid4().hex
    return [make, arguments, *(list(part) if isinstance(part, Iterator) else part for part in rest)]
