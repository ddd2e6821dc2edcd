"""Where a run stands, from its files alone: stages, sizes, times, and an estimate of the time that is left.

It takes no lock and changes nothing, so that it works while the run goes on.
"""

import fcntl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentknobs.data.journal import finished_in, journal_of
from latentknobs.files import path_of
from latentknobs.reporting.findings import left_out
from latentknobs.training.manifest import Entry, Manifest
from latentknobs.training.plan import Plan
from latentknobs.training.rundir import LOCK, METRICS, read_rows


@dataclass(frozen=True)
class Stage:
    """A stage of a run."""

    name: str  # e.g. `round-1/rollouts`
    items: int  # responses (or steps, or files) that it makes; an upper bound until it has begun
    done: int  # how many of them are finished
    size: int  # bytes of its finished files
    seconds: float  # time spent on them, summed over processes
    left: float | None  # estimated seconds that remain; None where no stage of its kind has finished anything yet


@dataclass(frozen=True)
class Status:
    """The state of a run, from its files."""

    stages: list[Stage]
    running: bool  # whether a process works on it now
    left: float | None  # estimated seconds until all stages are finished; None while some kind of stage has not been timed
    left_out: str = ""  # a sentence on prompts that taught a learner on policy nothing

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(stage.done == stage.items for stage in self.stages)


def read_status(path: Path) -> Status:
    """The state of a run directory; RunError if there is none, or its plan or manifest is damaged."""
    path = path_of(path)
    plan = Plan.read(path)
    manifest = Manifest(path)
    rates = _rates(manifest.entries)
    stages = []
    for name, items in plan.stages.items():
        keys = plan.begun.get(name, {})
        mine = _finished(path, manifest.entries, keys)
        done = min(items, sum(entry.items for entry in mine) + _running(path, name, keys, mine))
        pace = rates.get(_kind(name))
        left = 0.0 if done == items else None if pace is None else (items - done) * pace / plan.processes
        stages.append(Stage(name, items, done, sum(e.size for e in mine), sum(e.seconds for e in mine), left))
    known = [stage.left for stage in stages if stage.left is not None]
    numbers = [(row.get("dropped"), row.get("prompts")) for _, row in _metrics(path) if row.get("head") == "main"]
    counts = [(some, of) for some, of in numbers if isinstance(some, int) and isinstance(of, int)]
    return Status(stages, _locked(path), sum(known) if len(known) == len(stages) else None, left_out(counts))


def _metrics(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    return read_rows(path / METRICS) if (path / METRICS).is_file() else ()


def _finished(path: Path, entries: Sequence[Entry], keys: dict[str, str]) -> list[Entry]:
    """The last entry of every file of these keys, where the file is there."""
    last = {entry.file: entry for entry in sorted(entries, key=lambda e: e.ended) if keys.get(entry.file) == entry.key}
    return [e for e in last.values() if (path / e.file).is_file() and (path / e.file).stat().st_size == e.size]


def _kind(stage: str) -> str:
    return stage.rpartition("/")[2]


def _rates(entries: Sequence[Entry]) -> dict[str, float]:
    """Seconds per item of every kind of stage with a finished file."""
    kinds: dict[str, list[Entry]] = {}
    for entry in entries:
        kinds.setdefault(_kind(entry.stage), []).append(entry)
    return {kind: sum(e.seconds for e in mine) / max(1, sum(e.items for e in mine)) for kind, mine in kinds.items()}


def _running(path: Path, stage: str, keys: dict[str, str], finished: Sequence[Entry]) -> int:
    """What is done of files that are not finished: responses in journals, and steps of a head, from the metrics."""
    if _kind(stage) != "heads":
        left = keys.keys() - {entry.file for entry in finished}
        return sum(finished_in(journal_of(path, file), keys[file]) for file in left)
    if not keys:
        return 0
    open_heads = {Path(file).stem for file in keys} - {Path(entry.file).stem for entry in finished}
    number = int(stage.partition("/")[0].rpartition("-")[2])
    return sum((row.get("round"), str(row.get("head"))) in {(number, head) for head in open_heads} for _, row in _metrics(path))


def _locked(path: Path) -> bool:
    try:
        with (path / LOCK).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
