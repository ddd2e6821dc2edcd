"""What a run has finished: one line for every file, with a hash of its content and its key.

A file counts as finished when some line names it with the wanted key and the hash of what is on disk now, so stale, truncated
and half-written files are never reused. Each process of a run appends to a manifest of its own; all of them are read.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import FiniteFloat, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError

from latentknobs.errors import RunError
from latentknobs.files import MB, read_text

NAME, LARGEST = "manifest", 256 * MB
CURE = "Delete the file to run every stage again, or choose another output_dir."


@dataclass(frozen=True)
class Entry:
    """One finished file."""

    stage: str  # what wrote it, e.g. `round-1/rollouts`
    file: str  # its path, relative to the run directory
    key: str  # digest of everything its content depends on
    sha256: str  # hash of its content
    size: NonNegativeInt  # bytes
    items: NonNegativeInt  # responses (or steps) in it
    seconds: NonNegativeFloat  # how long it took
    ended: FiniteFloat  # when it was finished, seconds since 1970


ENTRY = TypeAdapter(Entry)


class Manifest:
    """The entries of a run directory; RunError if a line is not an entry, or names a file outside the directory."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self._own = folder / (f"{NAME}.jsonl" if rank == 0 else f"{NAME}.{rank}.jsonl")
        self._length = 0
        self._checked: dict[tuple[str, int, int], str] = {}
        self.entries: list[Entry] = []
        self.reload()

    def reload(self) -> None:
        """Reads what this and other processes have written."""
        entries: list[Entry] = []
        for path in sorted(self.folder.glob(f"{NAME}*.jsonl")):
            lines = read_text(path, RunError, CURE, LARGEST).encode().split(b"\n")[:-1]
            entries += [_parse(line, f"Line {number} of {str(path)!r}", self.folder) for number, line in enumerate(lines, 1)]
            if path == self._own:
                self._length = sum(len(line) + 1 for line in lines)
        self.entries = entries
        self._known: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            self._known.setdefault((entry.file, entry.key), []).append(entry)

    def find(self, file: str, key: str) -> Entry | None:
        """The entry of a file that was written under this key and still has the same content, or None."""
        known = self._known.get((file, key))
        if not known or not (self.folder / file).is_file():
            return None
        sha256 = self.content(file)
        return next((entry for entry in known if entry.sha256 == sha256), None)

    def damaged(self, file: str, key: str) -> str | None:
        """What is wrong with a file that was finished under this key and is not usable now, in words."""
        known = self._known.get((file, key))
        if not known or self.find(file, key) is not None:
            return None
        path = self.folder / file
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != known[-1].size:
            return f"has {size} bytes instead of {known[-1].size}"
        return "was changed after it was written"

    def content(self, file: str) -> str:
        """The hash of what a file holds now; read again only when its size or time has changed."""
        path = self.folder / file
        stat = path.stat()
        mark = (file, stat.st_size, stat.st_mtime_ns)
        if mark not in self._checked:
            with path.open("rb") as data:
                self._checked[mark] = hashlib.file_digest(data, "sha256").hexdigest()
        return self._checked[mark]

    def add(self, entry: Entry) -> None:
        """Appends an entry, on disk before this returns."""
        data = (json.dumps(asdict(entry)) + "\n").encode()
        with self._own.open("ab") as file:
            file.truncate(self._length)  # a line that an interruption or a full disk left half-written
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._length += len(data)
        self.entries.append(entry)
        self._known.setdefault((entry.file, entry.key), []).append(entry)


def _parse(line: bytes, where: str, folder: Path) -> Entry:
    try:
        entry = ENTRY.validate_json(line, strict=True)
    except ValidationError:
        raise RunError(f"{where} is not an entry of a manifest, so it does not say which stages are finished. {CURE}") from None
    if "\0" in entry.file or not (folder / entry.file).resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{where} names {entry.file[:200]!r}, which is outside the run directory. It is not read.")
    return entry
