"""Configs as YAML files, read in bounded memory and time, because a run directory may have come from anywhere."""

import math
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node

from latentknobs.errors import ConfigError
from latentknobs.files import path_of, read_text

BYTES, NODES = 200_000, 20_000  # most that a config file may hold
CURE = "Give the path of a YAML file with settings."


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, by section or flat; ConfigError if it is missing, too large, or does not hold settings."""
    text = read_text(path_of(path), ConfigError, CURE, BYTES)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and _count(node, {}) > NODES:
            raise ValueError(f"with its aliases written out it holds more than {NODES:,} values")
        settings = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"The config file {str(path)!r} is not YAML for settings: {str(error)[:300]}. {CURE}") from None
    if not isinstance(settings or {}, dict):
        raise ConfigError(f"The config file {str(path)!r} must hold `setting: value` lines, not {type(settings).__name__}.")
    return {str(name): value for name, value in (settings or {}).items()}


def _count(node: Node, known: dict[int, float]) -> float:
    """Values below a node with every alias written out; infinite where one contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # as long as its own content is looked at
        parts = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in parts) if isinstance(node, CollectionNode) else 1
    return known[id(node)]
