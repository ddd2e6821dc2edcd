"""A Python file of the user's own as a reward: `score.py:name`, or `score.py` where its function is `reward` or its only one."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from latentknobs.errors import ConfigError, did_you_mean, first_line
from latentknobs.files import path_of
from latentknobs.rewards.identity import content_hash

SPEC = r"([^:]+\.py)(?::(\w+))?"  # `command:run=python score.py` is not one


def names_file(spec: str) -> bool:
    """Whether a reward is written as a Python file."""
    return re.fullmatch(SPEC, spec.strip()) is not None


def from_file(spec: str) -> tuple[Any, dict[str, Any]]:
    """The function, and its origin: a score is kept as long as the content of its file stays the same.

    Raises:
        ConfigError: there is no such file or function, or the file fails.
    """
    file, name = re.fullmatch(SPEC, spec.strip()).groups()  # type: ignore[union-attr]
    path = path_of(file)
    if not path.is_file():
        raise ConfigError(f"The reward {spec!r} is a Python file, and there is no {str(path)!r}. Correct its path.")
    module = _imported(path)
    own = {key: v for key, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__}
    public = [key for key, value in own.items() if not key.startswith("_") and not isinstance(value, type)]
    name = name or ("reward" if "reward" in public or len(public) != 1 else public[0])
    if not callable(found := getattr(module, name, None)) or isinstance(found, type):
        hint = f" {did_you_mean(name, public)}" if public else " It has none: write `def reward(completions, **columns)`."
        raise ConfigError(f"The file {str(path)!r} has no function {name!r} to be the reward.{hint}")
    return found, {"file": content_hash(path), "function": name, "settings": {}}


def _imported(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"latentknobs_reward_{path.stem}", path)  # a name that hides no other module
    assert spec is not None and spec.loader is not None  # the name ends in .py
    sys.modules[spec.name] = module = module_from_spec(spec)  # dataclasses and pickle look it up there
    sys.path.insert(0, str(path.parent))  # what lies beside it can be imported, as where Python starts it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"The reward {str(path)!r} cannot be imported: {why}. Start it with python to see where.") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
