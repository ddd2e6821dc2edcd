"""When two rewards are the same one: so that a score can be kept, and is asked again when the reward has changed."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def identity_of(function: Callable[..., Any], origin: Mapping[str, Any] | None) -> str | None:
    """A hash of what decides the scores of a reward, None where nothing tells.

    Args:
        origin: of a reward asked for by name: its entry point, distribution, and settings. They count together with the
            code of its module and the content of files and folders among the settings. A reward that is code has no
            origin; an attribute `version` (text or number), which its author must change with it, tells all of it; for one
            without see `fingerprint`.
    """
    version = getattr(function, "version", None)
    version = version if isinstance(version, str | int | float) else None
    if origin is None and version is None:
        return None
    code = function if inspect.isroutine(function) else type(function)
    told = {"code": f"{code.__module__}:{code.__qualname__}", "version": version, **(origin or {})}
    if origin is not None:
        told["source"] = _source_hash(code)
        told["contents"] = {name: content_hash(value) for name, value in origin["settings"].items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=repr).encode()).hexdigest()


def content_hash(name: Any) -> str | None:
    """A hash of the file of that name, or of all files in the model folder of that name; None if there is none."""
    path = Path(name) if isinstance(name, str | Path) else None
    try:
        if path is None or not (path.is_file() or (path / "config.json").is_file()):
            return None
    except (OSError, ValueError):  # a text that could be no file's name
        return None
    files = [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file())
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path)}\n".encode())
        with file.open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()


def _source_hash(code: Any) -> str | None:
    try:
        return content_hash(inspect.getsourcefile(code))
    except TypeError:  # built in, or made in an interpreter
        return None
