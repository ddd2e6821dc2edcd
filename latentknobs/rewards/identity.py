"""When two rewards are the same one: so that a score can be kept, and is computed again when the reward has changed."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def identity_of(function: Callable[..., Any], origin: Mapping[str, Any] | None) -> str | None:
    """A hash of what decides the scores of a reward; None where nothing says so.

    Args:
        function: code is identified by an attribute `version` (text or number), which its author changes with all that the
            scores depend on, its qualified name and its settings: the arguments of its class that an object keeps under
            their own names, or those of a `functools.partial`.
        origin: of a reward that was named: its entry point, distribution and settings. They count together with `version`,
            the code of its module, and the content of files and model folders among the settings.
    """
    inner = function.func if isinstance(function, functools.partial) else function
    version = next((v for v in map(_version, (function, inner, getattr(inner, "__self__", None))) if v is not None), None)
    if origin is None and version is None:
        return None
    code = inner if inspect.isroutine(inner) else type(inner)
    parts = {"code": f"{code.__module__}:{code.__qualname__}", "version": version, "arguments": _arguments(function)}
    if origin is not None:
        contents = {name: content_hash(value) for name, value in origin["settings"].items()}
        parts = {**parts, "arguments": None, **origin, "source": _source_hash(code), "contents": contents}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def content_hash(name: Any) -> str | None:
    """A hash of the file of that name, or of all files in the model folder of that name; None if there is none."""
    path = Path(name) if isinstance(name, str | Path) else None
    try:
        if path is None or not (path.is_file() or (path / "config.json").is_file()):
            return None
    except (OSError, ValueError):  # a text that cannot be a file's name
        return None
    files = [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path)}\n".encode())
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()


def _version(function: Any) -> str | int | float | None:
    version = getattr(function, "version", None)
    return version if isinstance(version, str | int | float) else None


def _arguments(function: Any) -> Any:
    """What a partial, a bound method's object or an object was made with."""
    if isinstance(function, functools.partial):
        return [_arguments(function.func), function.args, function.keywords]
    if inspect.isroutine(function):
        owner = getattr(function, "__self__", None)
        return None if owner is None or inspect.ismodule(owner) else _arguments(owner)
    try:
        names = inspect.signature(type(function)).parameters
    except (TypeError, ValueError):
        return None
    return {name: getattr(function, name) for name in names if hasattr(function, name)}


def _source_hash(code: Any) -> str | None:
    try:
        return content_hash(inspect.getsourcefile(code))
    except TypeError:  # built in, or written in an interpreter
        return None
