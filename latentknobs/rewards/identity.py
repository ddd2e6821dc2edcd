"""When two rewards are the same one: so that a score can be kept, and is computed again when the reward has changed."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentknobs import content


def identity_of(function: Callable[..., Any], origin: Mapping[str, Any] | None) -> str | None:
    """A hash of what decides the scores of a reward; None if it is not known.

    Args:
        function: code is identified by an attribute `version` (text or number), which its author changes with all that the
            scores depend on, its qualified name and its settings: the arguments of its class that an object keeps under
            their own names, or those of a `functools.partial`.
        origin: of a reward that was named: its entry point, distribution and settings. They count together with `version`,
            the code of its module, and the content of files and model folders among the settings.
    """
    inner = function.func if isinstance(function, functools.partial) else function
    found = [getattr(one, "version", None) for one in (function, inner, getattr(inner, "__self__", None))]
    version = next((version for version in found if isinstance(version, str | int | float)), None)
    if origin is None and version is None:
        return None
    code = inner if inspect.isroutine(inner) else type(inner)
    parts: dict[str, Any] = {"code": f"{code.__module__}:{code.__qualname__}", "version": version}
    if origin is None:
        parts["arguments"] = _arguments(function)
    else:
        parts |= {**origin, "source": _source(code), "contents": [content_hash(value) for value in origin["settings"].values()]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=content.digest).encode()).hexdigest()


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


def _arguments(function: Any) -> Any:
    """What a partial, an object or the object of a bound method was constructed with."""
    if isinstance(function, functools.partial):
        return [_arguments(function.func), function.args, function.keywords]
    if inspect.isroutine(function):
        owner = getattr(function, "__self__", None)
        return None if owner is None or inspect.ismodule(owner) or inspect.isclass(owner) else _arguments(owner)
    try:
        return {name: getattr(function, name, None) for name in inspect.signature(type(function)).parameters}
    except ValueError:  # of C, e.g. what functools.lru_cache returns
        return None


def _source(code: Any) -> str | None:
    try:
        return content_hash(inspect.getsourcefile(code))
    except TypeError:  # built in, or written in an interpreter
        return None
