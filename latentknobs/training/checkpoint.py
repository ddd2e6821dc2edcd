"""A checkpoint of a head's training, in one safetensors file: written whole or not at all, and ignored when it is damaged.

The header holds plain JSON: which fit it belongs to, the step, small facts, and a checksum of the tensors. A file that does
not fit is left aside with a sentence, and the training starts over: at most minutes are lost, and no head is wrong.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentknobs.content import digest
from latentknobs.data.disk import partial_of, save_tensors
from latentknobs.progress import say

HEADER, FORMAT = "latentknobs_checkpoint", 1


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: after how many steps, the tensors, and small facts that JSON can hold."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Checkpoint:
    """The file that one fit saves to and goes on from.

    Args:
        key: digest of everything that decides what the fit does; a file with another one is ignored.
        say: receives the reason why a file is ignored.
    """

    def __init__(self, path: Path, key: str, say: Callable[[str], None] = say) -> None:
        self.path, self.key, self.say = path, key, say
        self._saved = self._read()
        self._step = self._saved.step if self._saved else 0

    def step(self) -> int:
        """After how many steps there is something to go on from; 0 is the beginning."""
        return self._step

    def load(self) -> Saved | None:
        """What was saved, or None to begin. Handed out once, so that it does not stay in memory."""
        saved, self._saved = self._saved, None
        return saved

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replaces the file, and waits until the disk has it; an OSError leaves the one before."""
        header: dict[str, Any] = {"format": FORMAT, "key": self.key, "step": step, "facts": dict(facts)}
        header["checksum"] = checksum(tensors, header)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, self.path, {HEADER: json.dumps(header)})
        self._step = step

    def _read(self) -> Saved | None:
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[HEADER])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
            if header["format"] != FORMAT or header["key"] != self.key:
                self.say(f"{str(self.path)!r} is of other settings or data: this head's training starts at step 1.")
                return None
            if header.pop("checksum") != checksum(tensors, header):
                raise ValueError("its checksum is wrong")
            return Saved(int(header["step"]), tensors, dict(header["facts"]))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.say(f"{str(self.path)!r} cannot be used ({error}): this head's training starts again at step 1.")
            return None


def checksum(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """A digest of a header and of tensors by name, whatever their order."""
    return digest(json.dumps(header, sort_keys=True), sorted(tensors.items()))


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint that is no longer needed, and what a killed process may have left of one."""
    for file in (path, partial_of(path)):
        file.unlink(missing_ok=True)
