"""The modules that a callable may use, as facts that change when they do. Nothing is imported to find them out.

A module of the user counts by the content of its file, together with every module that this file imports anywhere. A module
of an installed distribution counts by name and version of that, and the standard library by Python's version. Not seen are
imports under a name that is only made up while the code runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import platform
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

PYTHON = f"{platform.python_implementation()} {platform.python_version()}"
INSTALLED = {"site-packages", "dist-packages"}  # folders


class UnreadableError(Exception):
    """Something that an answer may depend on cannot be told. Its text names it."""


class Found(NamedTuple):
    """Where a module is: its file, None for one without a file; and the package that its relative imports start from."""

    file: Path | None
    package: str


def is_library(name: str | None) -> bool:
    """Whether nobody but an author of a release changes the module: the standard library, an installed one, or this one."""
    if name is None or name.split(".")[0] in ("latentknobs", "builtins"):
        return name is not None
    found = _find(name)
    return found is not None and _released(name, found) is not None


def module_facts(names: Iterable[str]) -> list[str]:
    """One line for each module or distribution that is reachable from some modules, sorted.

    Raises:
        UnreadableError: a file cannot be read, or is no Python.
    """
    facts, seen, todo = {f"Python {PYTHON}"}, set[str](), [*names]
    while todo:
        name = todo.pop()
        parts = name.split(".")
        todo += [parent for n in range(1, len(parts)) if (parent := ".".join(parts[:n])) not in seen]
        if name in seen or not name:
            continue
        seen.add(name)
        if (found := _find(name)) is None:
            facts.add(f"{name}: not there")
        elif released := _released(name, found):
            facts.add(released)
        elif found.file is not None:
            content = _read(name, found.file)
            facts.add(f"{name}: {hashlib.sha256(content).hexdigest()}")
            todo += _imports(name, content, found.package) if found.file.suffix == ".py" or name == "__main__" else []
    return sorted(facts)


def absolute(module: str | None, level: int, package: str) -> str:
    """The full name of the module that an import statement names; '' where it leads nowhere."""
    if not level:
        return module or ""
    base = package.split(".")
    return ".".join([*base[: len(base) - level + 1], *([module] if module else [])]) if package and level <= len(base) else ""


def variables(value: Any) -> dict[str, Any] | None:
    """The global variables of a module, also of one that would import more on demand; None for anything else."""
    is_module = ModuleType in vars(type)["__mro__"].__get__(type(value))
    found: dict[str, Any] | None = vars(ModuleType)["__dict__"].__get__(value) if is_module else None
    return found


def _find(name: str) -> Found | None:
    """None where there is no such module."""
    if (told := variables(sys.modules.get(name))) is not None:
        spec, file = told.get("__spec__"), told.get("__file__")
        package = told.get("__package__") or ("" if spec is None else spec.parent) or ""
        return Found(Path(file).absolute() if isinstance(file, str) else None, package)
    spec = _spec(name)
    if spec is None:
        return None
    has_file = spec.has_location and spec.origin is not None
    return Found(Path(spec.origin or "").absolute() if has_file else None, spec.parent or "")


def _spec(name: str) -> Any:
    """As `importlib.util.find_spec`, which would import the packages above it."""
    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(name)
        loaded = sys.modules.get(parent)
        above = _spec(parent) if loaded is None else (variables(loaded) or {}).get("__spec__")
        paths = None if above is None else above.submodule_search_locations
        return None if paths is None else importlib.machinery.PathFinder.find_spec(name, paths)
    except (ImportError, ValueError, AttributeError, TypeError):  # e.g. a module that was made by hand
        return None


def _released(name: str, found: Found) -> str | None:
    """The distribution and its version, or Python; None for code of the user, also where that is installed in place."""
    top = name.split(".")[0]
    if found.file is None:
        return f"Python {PYTHON}" if top in sys.stdlib_module_names else None
    if INSTALLED & set(found.file.parts):
        owners = sorted(set(_distributions().get(top, ())))
        return ", ".join(f"{owner} {_version(owner)}" for owner in owners) or None
    return f"Python {PYTHON}" if found.file.is_relative_to(_standard()) else None


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


@cache
def _version(distribution: str) -> str:
    return version(distribution)


@cache
def _standard() -> Path:
    return Path(sysconfig.get_path("stdlib")).absolute()


def _read(name: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnreadableError(f"the module `{name}`, whose file {str(file)!r} cannot be read ({error.strerror})") from None


def _imports(name: str, content: bytes, package: str) -> Iterator[str]:
    """Full names of all that a file imports, also inside functions. What may be a module or a thing in one is given too."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        raise UnreadableError(f"the module `{name}`, whose file is not valid Python") from None
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (one.name for one in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                yield from named(absolute(module, level, package), [one.name for one in names])
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                          args=[ast.Constant(value=str(text)), *_]):  # fmt: skip
                yield text if not text.startswith(".") else absolute(text.lstrip("."), len(text) - len(text.lstrip(".")), package)


def named(base: str, names: Iterable[str]) -> Iterator[str]:
    """The module of `from base import names`, and those of the names that are modules of the user themselves."""
    yield base
    if base and not is_library(base):
        yield from (full for name in names if name != "*" and _find(full := f"{base}.{name}") is not None)
