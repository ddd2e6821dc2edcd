"""The commands of `latentknobs`, one in a file. Each imports what is large only when it runs, so that help is quick."""

import os
from pathlib import Path
from typing import Any

import click

from latentknobs.errors import ConfigError
from latentknobs.files import path_of


class UserPath(click.Path):
    """A path on the command line; `--to=~/x` reaches us with its tilde."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path that was meant."""
        return path_of(str(super().convert(value, param, ctx)))


def check_writable(path: Path, option: str) -> None:
    """Refuses, by a ConfigError, a file that cannot be written, before the work that would be lost."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {str(path)!r} cannot be written: its folder does not exist. Create it first.")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        what = "it is a folder" if path.is_dir() else "you may not write there"
        raise ConfigError(f"{option} {str(path)!r} cannot be written: {what}. Choose another file.")
