"""The findings of a run's diagnostics: a file of plain sentences beside the other results."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from latentknobs.data.disk import write_text
from latentknobs.errors import RunError
from latentknobs.files import read_json

FILE = "diagnostics.json"
HEADING = "What to look at"
CALM = (
    "Nothing stands out: no failing or tying rewards, no task that dominates the pairs, no head that is uniform, constant or "
    "overfitted, no bias to length."
)


def write_findings(run: str | Path, findings: Sequence[str]) -> None:
    """Saves the sentences, complete or not at all. An empty list is written as well."""
    write_text(Path(run) / FILE, json.dumps({"findings": list(findings)}, indent=2) + "\n")


def read_findings(run: str | Path) -> list[str] | None:
    """What `write_findings` saved; None where a run has not been looked at. RunError if the file is damaged."""
    path = Path(run) / FILE
    if not path.exists():
        return None
    found: dict[str, list[str]] = read_json(path, dict[str, list[str]], RunError, "Delete it to go on without it.")
    if "findings" not in found:
        raise RunError(f"{str(path)!r} is damaged: it has no findings. Delete it to go on without it.")
    return found["findings"]


def left_out(steps: Iterable[tuple[int, int]]) -> str:
    """A sentence on the prompts of steps on policy that taught nothing, from how many they were, of how many; or nothing."""
    dropped, prompts = (sum(column) for column in zip((0, 0), *steps, strict=True))
    if not prompts:
        return ""
    return f"Steps left out {dropped:,} of the {prompts:,} prompts that they took: the rewards of these did not vary, or failed."
