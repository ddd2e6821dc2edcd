"""What the user names by ADAPTER_OR_RUN: an adapter's folder, or a run directory that holds one."""

import reprlib
import shlex
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from latentknobs.adapter import CONFIG, KnobAdapter
from latentknobs.commands.settings import LISTS, check_repeatable, parse_flags, run_settings
from latentknobs.errors import ConfigError
from latentknobs.files import path_of
from latentknobs.rewards.python_file import names_file


def open_saved(path: Path) -> tuple[KnobAdapter, Path]:
    """The adapter, and the folder that it is in; AdapterError if there is none, or it cannot be used."""
    path = path_of(path)
    folder = path / "adapter" if (path / "adapter" / CONFIG).exists() else path
    return KnobAdapter.from_pretrained(folder), folder


def settings_of(adapter: KnobAdapter, folder: Path, names: Iterable[str], chosen: Container[str] = ()) -> dict[str, Any]:
    """Some settings that the adapter was trained with, from its run or its notes, without those that are chosen now, and never
    trust_remote_code: a folder may come from anywhere. ConfigError if one was a Python object, or the reward is a program.
    """
    names = tuple(name for name in names if name != "trust_remote_code" and name not in chosen)
    if (folder.parent / "config.yaml").exists():
        settings = run_settings(folder.parent, names)
        check_reward(settings.get("reward"), folder.parent)
        return settings
    remembered = {name: adapter.training[name] for name in names if adapter.training.get(name) not in (None, "None")}
    for name, value in remembered.items():
        if not isinstance(value, str | int | float):
            raise ConfigError(
                f"The adapter in {str(folder)!r} notes {name}={reprlib.repr(value)}, which is not a setting. "
                f"Give --{name.replace('_', '-')} here."
            )
        check_repeatable(name, value, folder)
    settings = parse_flags({n: (str(v),) if n in LISTS else v for n, v in remembered.items()})
    check_reward(settings.get("reward"), folder)
    return {"model": adapter.base["name"]} | settings


def check_reward(reward: Any, where: Path) -> None:
    """Refuses to start a program because a folder, which may have come from anywhere, names it."""
    specs = [str(spec) for spec in (reward if isinstance(reward, list | tuple) else [reward])]
    if any(spec.partition(":")[0].strip() == "command" or names_file(spec) for spec in specs):
        flags = " ".join(f"--reward {shlex.quote(spec)}" for spec in specs)
        raise ConfigError(
            f"The reward in {str(where)!r} is a program, and a folder does not start programs. If you trust it, add {flags}"
        )
