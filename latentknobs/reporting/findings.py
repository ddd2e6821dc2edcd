"""What a run's diagnostics found, as a file of plain sentences beside the other results."""

import json
from collections.abc import Sequence
from pathlib import Path

from latentknobs.errors import RunError

FILE = "diagnostics.json"
HEADING = "What to look at"
CALM = (
    "Nothing stands out: no failing or tying rewards, no task that dominates the pairs, no head that is uniform, constant or "
    "overfitted, no bias to length."
)


def write_findings(run: str | Path, findings: Sequence[str]) -> None:
    """Saves the sentences, complete or not at all; none of them is a result, too."""
    path = Path(run) / FILE
    partial = path.with_name(FILE + ".partial")
    partial.write_text(json.dumps({"findings": list(findings)}, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read_findings(run: str | Path) -> list[str] | None:
    """What `write_findings` saved; None where a run has not been looked at.

    Raises:
        RunError: the file is damaged.
    """
    path = Path(run) / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return [str(sentence) for sentence in data["findings"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{str(path)!r} is damaged ({error!r}). Delete it to do without what it found.") from None
