"""Configs as YAML files, read in bounded memory and time, because a run directory may have come from anywhere."""

import math
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node

from latentknobs.errors import ConfigError, first_line
from latentknobs.files import path_of

BYTES, NODES = 200_000, 20_000  # most that a config file may hold
TOO_LARGE: Any = object()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, by section or flat; ConfigError if it is missing, too large, or does not hold settings."""
    try:
        with path_of(path).open("rb") as file:
            data = file.read(BYTES + 1)
        settings = TOO_LARGE if len(data) > BYTES else _parse(data.decode())
    except (OSError, UnicodeDecodeError, TypeError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(f"The config file {str(path)!r} cannot be read: {why}. Give the path of a YAML file.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"The config file {str(path)!r} is not YAML: {str(error)[:300]}.") from None
    if settings is TOO_LARGE:
        raise ConfigError(
            f"The config file {str(path)!r} holds more than a config can, over {BYTES:,} bytes or {NODES:,} values with its "
            "aliases written out. It is not read: give the path of a config file."
        )
    if not isinstance(settings or {}, dict):
        raise ConfigError(f"The config file {str(path)!r} must hold `setting: value` lines, not {type(settings).__name__}.")
    return {str(name): value for name, value in (settings or {}).items()}


def _parse(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        return TOO_LARGE if _count(node, {}) > NODES else loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: Node, known: dict[int, float]) -> float:
    """Values below a node with every alias written out; infinite where one contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # as long as its own content is looked at
        parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in parts) if isinstance(node, CollectionNode) else 1
    return known[id(node)]
