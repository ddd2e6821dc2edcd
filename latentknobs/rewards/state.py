"""What objects hold, read without calling anything of theirs."""

from __future__ import annotations

import collections
import datetime
import decimal
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

PLAIN: set[type] = {
    type(None), bool, int, float, complex, str, bytes, bytearray, range, type(...), type(NotImplemented),
    decimal.Decimal, datetime.date, datetime.timedelta,
}  # fmt: skip
CONTAINERS: dict[type, Callable[[Any], Any]] = {
    dict: lambda value: dict(dict.items(value)),
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    collections.deque: lambda value: (list(collections.deque.__iter__(value)), vars(collections.deque)["maxlen"].__get__(value)),
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    re.Pattern: lambda value: (value.pattern, value.flags),
    types.SimpleNamespace: lambda value: [],
}
NO_STATE = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__abstractmethods__", "_abc_impl", "__orig_bases__",
    "__dataclass_fields__", "__dataclass_params__", "__parameters__", "__static_attributes__", "__firstlineno__",
    "__annotate__", "__annotate_func__", "__annotations_cache__",
}  # fmt: skip
# of attributes, whose names `__slots__` and `_fields` (of a named tuple) tell too
PLACES = (types.MemberDescriptorType, types.GetSetDescriptorType, type(collections.namedtuple("_", "x").x))  # type: ignore[attr-defined]
OF_C = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)


def lineage(value: Any) -> tuple[type, ...]:
    """The classes of an object, its own first."""
    found: tuple[type, ...] = vars(type)["__mro__"].__get__(type(value))
    return found


def full_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{vars(type)['__module__'].__get__(kind)}.{vars(type)['__qualname__'].__get__(kind)}"


def class_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a class that decide what it does."""
    return {name: item for name, item in state.items() if name not in NO_STATE and type(item) not in PLACES}


def instance_state(value: Any, mro: tuple[type, ...]) -> dict[str, Any] | None:
    """The attributes of an object, with those in slots; None if a class of C may hold more than these."""
    state: dict[str, Any] = {}
    for kind in mro:
        own = vars(type)["__dict__"].__get__(kind)
        if kind is object or kind in CONTAINERS:
            pass
        elif kind is collections.defaultdict:
            state["default_factory"] = own["default_factory"].__get__(value)
        elif kind not in (collections.OrderedDict, typing.Generic) and _is_of_c(kind, own):
            return None
        for name, item in own.items():
            if type(item) is types.MemberDescriptorType and "__slots__" in own:
                try:
                    state.setdefault(name, item.__get__(value))
                except AttributeError:
                    continue
        place = own.get("__dict__")  # where the attributes are, whatever the class says of them
        if type(place) in (types.GetSetDescriptorType, types.MemberDescriptorType):
            state |= place.__get__(value)
    state.pop("_original_object_hash", None)  # of transformers: Python's hash of a generation config, another one in each process
    return state


def _is_of_c(kind: type, own: Mapping[str, Any]) -> bool:
    """Whether no class statement made it: it has neither slots nor a `__dict__`, or parts that such a class never has."""
    new = own.get("__new__")
    return (
        not ("__slots__" in own or any("__dict__" in vars(base) for base in vars(type)["__mro__"].__get__(kind)))
        or any(type(item) in OF_C and item.__objclass__ is kind for item in own.values())
        or (type(new) is types.BuiltinFunctionType and new.__self__ is kind)
        or any(type(item) is types.MemberDescriptorType and "__slots__" not in own for item in own.values())
        or any(type(own[name]) is types.GetSetDescriptorType for name in own if name not in ("__dict__", "__weakref__"))
    )


def named_builtin(value: Any) -> str | None:
    """The name of something that is built in and has no state; None for anything else."""
    if type(value) in OF_C:
        return f"{value.__objclass__.__module__}.{value.__objclass__.__qualname__}.{value.__name__}"
    return None
