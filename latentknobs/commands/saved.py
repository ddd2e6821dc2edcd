"""What the user names by ADAPTER_OR_RUN: an adapter's folder, or a run directory that holds one."""

from pathlib import Path
from typing import Any

import yaml

from latentknobs.adapter import CONFIG, KnobAdapter
from latentknobs.commands.settings import check_repeatable, run_settings
from latentknobs.config import TrainConfig


def open_saved(path: Path) -> tuple[KnobAdapter, Path]:
    """The adapter, and the folder it is in.

    Raises:
        AdapterError: there is none, or it cannot be used.
    """
    folder = path / "adapter" if (path / "adapter" / CONFIG).exists() else path
    return KnobAdapter.from_pretrained(folder), folder


def settings_of(adapter: KnobAdapter, folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Some settings that the adapter was trained with: from its run, or from what the adapter itself remembers.

    Raises:
        ConfigError: one of them was a Python object.
    """
    if (folder.parent / "config.yaml").exists():
        return run_settings(folder.parent, names)
    remembered = {name: adapter.training[name] for name in names if adapter.training.get(name) not in (None, "None")}
    for name, value in remembered.items():
        check_repeatable(name, value, folder)
    texts = [name for name, field in TrainConfig.model_fields.items() if field.annotation is str]
    return {"model": adapter.base["name"]} | {n: v if n in texts else yaml.safe_load(v) for n, v in remembered.items()}
