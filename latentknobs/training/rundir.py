"""The run directory: finished stages, what they depended on, and the lock that keeps two processes apart.

A stage is skipped when the manifest says that it finished with the same key: a digest of the settings it depends on and
of the stages before it. Changing `beta` therefore redoes the optimisation and keeps the rollouts.
"""

import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from safetensors import SafetensorError

from latentknobs.errors import RunError

MANIFEST, LOCK, METRICS = "manifest.json", "lock", "metrics.jsonl"
T = TypeVar("T")


class RunDir:
    """A folder with a manifest of finished stages. Use it as a context manager: it holds a lock meanwhile.

    Raises:
        RunError: another process works in the folder, or the manifest is damaged.
    """

    def __init__(self, path: str | Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.path = Path(path)
        self.say = say
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run directory {str(path)!r} cannot be made: {error.strerror}. Choose another one.") from None
        self._lock: IO[str] | None = None
        self._manifest = self._read()

    def __enter__(self) -> "RunDir":
        self._lock = (self.path / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunError(
                f"Another process is working in {str(self.path)!r}. Wait for it, or choose another output_dir."
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def stage(self, name: str, key: str, files: list[str], make: Callable[[], None], load: Callable[[], T]) -> T:
        """The result of a stage: made now, or loaded when it already finished with this key.

        Args:
            files: what `make` writes, relative to the run directory; all must exist for the stage to count as finished.
        """
        entry = self._manifest.get(name)
        if entry and entry["key"] == key and all((self.path / file).exists() for file in files):
            self.say(f"{name}: already done, reused")
            return self._load(files, load)
        started = time.monotonic()
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        self.forget(name)  # an interruption between files and manifest must not leave the old entry beside new files
        make()
        self._manifest[name] = {"key": key, "files": files, "seconds": round(time.monotonic() - started, 2)}
        self._write()
        self.say(f"{name}: {self._manifest[name]['seconds']:.0f} s")
        return self._load(files, load)

    def _load(self, files: list[str], load: Callable[[], T]) -> T:
        try:
            return load()
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            if isinstance(error, RunError):
                raise
            path = self.path / files[0]
            raise RunError(f"{str(path)!r} is damaged ({error}). Delete it; the stage will be run again.") from error

    def forget(self, name: str) -> None:
        """Makes a stage count as unfinished."""
        if self._manifest.pop(name, None) is not None:
            self._write()

    def log(self, row: dict[str, Any]) -> None:
        """Appends one row to `metrics.jsonl`."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_metrics(self, drop: Callable[[dict[str, Any]], bool]) -> None:
        """Removes rows of `metrics.jsonl`, so that a stage that runs again does not log twice; and half-written lines."""
        path = self.path / METRICS
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if (row := _parsed(line)) and not drop(row)]
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _read(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        if not path.exists():
            return {}
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            assert all("key" in entry for entry in manifest.values())
        except (json.JSONDecodeError, AttributeError, TypeError, AssertionError):
            raise RunError(
                f"{str(path)!r} is damaged. Delete it to run every stage again, or choose another output_dir."
            ) from None
        return dict(manifest)

    def _write(self) -> None:
        partial = self.path / (MANIFEST + ".partial")
        partial.write_text(json.dumps(self._manifest, indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path / MANIFEST)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None
