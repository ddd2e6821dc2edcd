"""Files that are complete and on the disk, or not there at all."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once it is on the disk. Neither is left behind by an error."""
    partial = partial_of(path)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_of(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(path.name + ".partial")


def write_text(path: Path, text: str) -> None:
    """Writes a small file, complete or not at all; half of a surrogate pair, which no file can hold, as `?`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, notes: dict[str, str] | None = None) -> None:
    """Writes a safetensors file, complete or not at all; an OSError has the errno of the system. `notes` are its metadata."""
    with replacing(path) as partial:
        try:
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, partial, notes)
        except SafetensorError as error:  # it wraps the error of the system
            raise _as_os_error(error, path) from error


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    found = re.search(r"(?:os error|code:) (\d+)", str(error))
    number = int(found.group(1)) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error), str(path))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
