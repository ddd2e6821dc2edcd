"""A hash of everything that the answers of a callable may depend on, as far as it can be read; otherwise, what cannot be.

Read are the callable's code, defaults, closure, state, the globals it names and so on for what these are, and the modules that
can be reached (see `modules`). Nothing of the user's is called: no property, no `__getattr__`, no `__reduce__`. Objects come in
the order in which they are met, so the hash is the same in every process. What lies outside of the process (files that are
only named by a text, the network, the clock, environment variables) does not count, and nor does what standard or installed
modules hold in their variables.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

from latentknobs.rewards.bytecode import code_parts, global_chains, imported, inner
from latentknobs.rewards.identity import content_hash
from latentknobs.rewards.modules import UnreadableError, is_library, module_facts, variables
from latentknobs.rewards.state import CONTAINERS, PLAIN, class_state, full_name, instance_state, lineage, named_builtin
from latentknobs.rewards.tensors import numbers

LOGGERS = ("logging.Logger", "logging.RootLogger")  # what is logged changes no answer


def fingerprint(function: Callable[..., Any]) -> str:
    """See above.

    Raises:
        UnreadableError: something cannot be read; the text names it, e.g. "its attribute `client`, a Session".
    """
    walk = _Walk()
    try:
        walk.value(function, "it")
    except RecursionError:
        raise UnreadableError("what it holds, which is nested too deeply") from None
    for fact in module_facts(walk.modules):
        walk.token("module", fact)
    return walk.out.hexdigest()


class _Walk:
    """One way through everything, in a fixed order."""

    def __init__(self) -> None:
        self.out = hashlib.sha256()
        self.modules: set[str] = set()
        self.met: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no id is used twice

    def token(self, kind: str, data: str | bytes = b"") -> None:
        data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        self.out.update(f"{kind} {len(data)}:".encode() + data)

    def value(self, value: Any, where: str) -> None:
        """Any value. `where` says what it is to the callable."""
        kind = type(value)
        if kind in PLAIN:
            return self.token(kind.__name__, repr(value))
        if kind in (set, frozenset):
            return self._set(value, where)
        if kind is tuple:
            return self._items(value, where)
        if id(value) in self.met:
            return self.token("met", str(self.met[id(value)]))
        self.met[id(value)] = len(self.kept)
        self.kept.append(value)
        if (method := _METHODS.get(kind)) is not None:
            return method(self, value, where)
        if issubclass(kind, type):
            return self._class(value, where)
        if (inside := variables(value)) is not None:
            return self._module(inside)
        if (found := numbers(value)) is not None:
            return self.token(*found)
        if (builtin := named_builtin(value)) is not None:
            return self.token("builtin", builtin)
        return self._instance(value, where)

    def _items(self, value: Any, where: str) -> None:
        self.token(type(value).__name__, str(len(value)))
        for n, item in enumerate(value):
            self.value(item, _inside(where, f"[{n}]"))

    def _set(self, value: Any, where: str) -> None:
        """Sets have no order, so each thing in them is read for itself."""
        hashes = []
        for item in value:
            one = _Walk()
            one.value(item, _inside(where, "[...]"))
            self.modules |= one.modules
            hashes.append(one.out.hexdigest())
        self.token(type(value).__name__, "".join(sorted(hashes)))

    def _dict(self, value: dict[Any, Any], where: str) -> None:
        self.token("dict", str(len(value)))
        for key, item in value.items():
            self.value(key, f"a key of {where}")
            self.value(item, _inside(where, f"[{key!r}]" if type(key) in PLAIN else "[...]"))

    def _named(self, items: Mapping[str, Any], where: str, what: str = "attribute") -> None:
        """Variables, whose order means nothing."""
        self.token("named", str(len(items)))
        for name in sorted(items):
            self.token("name", name)
            self.value(items[name], _attribute(where, name, what))

    def _function(self, value: FunctionType, where: str) -> None:
        module = value.__globals__.get("__name__")
        module = module if isinstance(module, str) else None
        self.modules |= {name for name in (module, value.__module__) if isinstance(name, str) and name != "builtins"}
        self._named(value.__dict__, where)
        self._items(value.__defaults__ or (), f"a default of {where}")
        self._named(value.__kwdefaults__ or {}, where, "default")
        self._named(dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)), where, "variable")
        if module is not None and is_library(module):
            return self.token("library", f"{module}:{value.__qualname__}")
        self._code(value.__code__, where)
        package = value.__globals__.get("__package__")
        self.modules |= imported(value.__code__, package if isinstance(package, str) else "")
        for chain in sorted(global_chains(value.__code__)):
            self._global(value.__globals__, chain, where)

    def _code(self, code: CodeType, where: str) -> None:
        for part in inner(code):
            self.value(code_parts(part), where)
            for constant in part.co_consts:
                if type(constant) is not CodeType:
                    self.value(constant, where)

    def _global(self, names: Mapping[str, Any], chain: tuple[str, ...], where: str) -> None:
        """A global, or as far as it is a module of the user what the code takes from it."""
        value: Mapping[str, Any] = names
        told = ""
        for name in chain:
            if name not in value:
                break  # a builtin, or not there yet
            self.token("global", name)
            told, found = f"{told}.{name}".lstrip("."), value[name]
            inside = variables(found)
            if inside is None or is_library(inside.get("__name__")):
                return self.value(found, f"the global `{told}`")
            self._module(inside)
            value = inside
        self.token("not there", ".".join(chain))

    def _cell(self, value: CellType, where: str) -> None:
        try:
            content = value.cell_contents
        except ValueError:
            return self.token("empty")
        self.token("cell")
        self.value(content, where)

    def _method(self, value: MethodType, where: str) -> None:
        self.token("method")
        self.value(value.__func__, where)
        self.value(value.__self__, where)

    def _partial(self, value: functools.partial[Any], where: str) -> None:
        self.token("partial")
        for part in (value.func, value.args, value.keywords, value.__dict__):
            self.value(part, where)

    def _builtin(self, value: Any, where: str) -> None:
        self.token("builtin", f"{value.__qualname__}")
        self.value(value.__self__, where)

    def _wrapper(self, value: Any, where: str) -> None:
        """What `functools.lru_cache`, `classmethod` or `staticmethod` made of a function."""
        self.token("wrapper", type(value).__name__)
        self.value(getattr(value, "__wrapped__", None), where)

    def _property(self, value: property, where: str) -> None:
        self.token("property")
        for part in (value.fget, value.fset, value.fdel):
            self.value(part, where)

    def _module(self, inside: Mapping[str, Any]) -> None:
        self.token("module", str(inside.get("__name__")))
        self.modules.add(str(inside.get("__name__")))

    def _class(self, value: type, where: str) -> None:
        state = vars(type)["__dict__"].__get__(value)
        module = state.get("__module__", "builtins")
        module = module if isinstance(module, str) else None
        qualname = vars(type)["__qualname__"].__get__(value)
        self.token("class", qualname)
        if module is not None and module != "builtins":
            self.modules.add(module)
        if module is None or not is_library(module):
            for part in (type(value), *vars(type)["__bases__"].__get__(value)):
                self.value(part, where)
            return self._named(class_state(state), where)
        return self.token("library", module)

    def _instance(self, value: Any, where: str) -> None:
        """An object of a class that was written in Python, or is made of containers: its class and all it holds."""
        kind, mro = type(value), lineage(value)
        name = full_name(kind)
        self.value(kind, where)
        if PurePath in mro and name.startswith("pathlib"):
            self.token("path", str(value))
            return self.token("content", content_hash(value) or "")
        if name in LOGGERS:
            return None
        for base, content in CONTAINERS.items():
            if base in mro:
                self.value(content(value), where)
        state = instance_state(value, mro)
        if state is None:
            raise UnreadableError(_named_part(where, value))
        try:
            self._named(state, where)
        except UnreadableError:
            if where != "it" and is_library(name.removesuffix(f".{vars(type)['__qualname__'].__get__(kind)}")):
                raise UnreadableError(_named_part(where, value)) from None  # its insides tell the user nothing
            raise
        return None


def _named_part(where: str, value: Any) -> str:
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return f"{'the callable itself' if where == 'it' else where}, {article} {name}"


def _attribute(where: str, name: str, what: str) -> str:
    return f"its {what} `{name}`" if where == "it" else _inside(where, f".{name}")


def _inside(where: str, part: str) -> str:
    return f"{where[:-1]}{part}`" if where.endswith("`") else f"a part of {where}"


_METHODS: dict[type, Callable[[_Walk, Any, str], None]] = {
    list: _Walk._items, dict: _Walk._dict, FunctionType: _Walk._function, CellType: _Walk._cell, MethodType: _Walk._method,
    functools.partial: _Walk._partial, BuiltinFunctionType: _Walk._builtin, staticmethod: _Walk._wrapper,
    classmethod: _Walk._wrapper, type(functools.lru_cache(len)): _Walk._wrapper, property: _Walk._property,
}  # fmt: skip
