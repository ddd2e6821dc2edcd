"""The run directory: files of stages that are written once, the metrics, and the lock that keeps two runs apart.

A file is written when the manifest does not hold it with the wanted key: a digest of the settings it depends on and of the
content it was computed from. Changing `beta` therefore redoes the optimisation and keeps the rollouts.
"""

import errno
import fcntl
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from latentknobs.config import SHORT, TrainConfig, make_config, read_yaml
from latentknobs.data.disk import replacing, write_text
from latentknobs.errors import LatentKnobsError, RunError
from latentknobs.files import MB, fit, parse_json, path_of, read_json
from latentknobs.progress import Advance, progress, say
from latentknobs.training.manifest import Entry, Manifest
from latentknobs.training.plan import Plan
from latentknobs.training.processes import Processes

LOCK, METRICS, HEADROOM = "lock", "metrics.jsonl", "headroom.json"
LONGEST = MB  # characters of a line
FILES = (  # of a run, for its README.md
    ("`config.yaml`", "every setting; `latentknobs train --config config.yaml` runs it again"),
    ("`round-N/prompts.jsonl`", "the prompts of the round, their tokens, and their other columns"),
    ("`round-N/rollouts/`", "sampled responses: index of the prompt, token ids, the option of each token, text"),
    ("`round-N/drift.jsonl`", "how far an engine that samples in another program is from a reading"),
    ("`unfinished/`", "responses of files of rollouts that are not complete yet"),
    ("`round-N/scores/`", "their rewards, line by line; null where the reward failed"),
    ("`round-N/examples.jsonl`", "what is learned from, as line numbers of all rollouts from 0; for lpo, chosen, rejected"),
    ("`round-N/features/`", "what the head is trained on: features and likelihood tables of the examples"),
    ("`round-N/heads/`", "the learned head and its rival, which sees no hidden states"),
    ("`metrics.jsonl`", "loss of every step, validation of about every twentieth part of them"),
    ("`tuning/`, `choice/`", "responses of constants and of what the adapter may hold to dev prompts, and their scores"),
    ("`evaluation/`, `controls/`", "responses of every policy to held-out prompts, their scores, and `summary.json`"),
    ("`budget-*/`", "the same under each budget of a learner on policy that has several; `evaluation/budgets.json`"),
    ("`adapter/`", "the result: `latentknobs.KnobAdapter.from_pretrained(...)`"),
    ("`report.html`", "the same for people"),
    ("`reward_cache/`", "scores that need not be computed again; may be deleted"),
    ("`manifest.jsonl`", "finished files with hashes of their content; a changed setting redoes only what depends on it"),
)


@dataclass(frozen=True)
class Task:
    """One file of a stage."""

    file: str  # its path, relative to the run directory
    key: str  # digest of everything its content depends on
    make: Callable[[Path, Advance], None]  # writes it, complete or not at all, and reports how many items are done
    items: int = 1  # responses (or steps) in it, for the estimate of the time that is left
    fresh: bool = False  # written again although it is finished, because its key does not say all that its content depends on


class RunDir:
    """A folder of finished stages. Use it as a context manager: the main process holds a lock meanwhile.

    RunError if another run works in the folder, or its manifest is damaged.
    """

    def __init__(
        self, path: str | Path, say: Callable[[str], None] = lambda text: None, processes: Processes | None = None,
        resume: bool = False, after: Path | None = None,
    ) -> None:  # fmt: skip
        self.path = path_of(path)
        self.say = say
        self.resume = resume  # finished files are trusted where their key does not say all that they depend on
        self.processes = processes or Processes()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run directory {str(path)!r} cannot be created: {error.strerror}. Choose another one.") from None
        self._locks: list[IO[str]] = []
        self.manifest = Manifest(self.path, self.processes.rank)
        self.after = None if after is None else Manifest(after)  # whose files of the same key are copied instead of made again
        self.plan: Plan | None = None  # notes every stage that is reached
        self.track: Callable[[dict[str, Any]], None] = lambda row: None  # receives every row of metrics

    def __enter__(self) -> "RunDir":
        rank, size = self.processes.rank, self.processes.size
        mine = [rank]
        if self.processes.is_main:  # a process of an earlier, larger run may still be there
            others = [path.suffix[1:] for path in self.path.glob(f"{LOCK}.*")]
            mine += [int(n) for n in others if re.fullmatch(r"\d{1,6}", n) and int(n) >= size]
        if any(self.processes.gather(not all(map(self._take_lock, mine)))):
            self.__exit__()
            raise RunError(f"Another run is working in {str(self.path)!r}. Wait for it, or choose another output_dir.")
        return self

    def __exit__(self, *_: object) -> None:
        for lock in self._locks:
            lock.close()

    def _take_lock(self, rank: int) -> bool:
        with explained(self.path, LOCK):
            lock = (self.path / (LOCK if rank == 0 else f"{LOCK}.{rank}")).open("w")
        self._locks.append(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def stage(self, name: str, tasks: Sequence[Task], together: bool = False) -> list[Path]:
        """The files of a stage, after writing the unfinished ones, each process its share; RunError if the disk is full.

        With `together` all processes make every file with each other, and only the main one writes it.
        """
        todo = self._unfinished(tasks)
        mine = todo if together else [n for place, n in enumerate(todo) if place % self.processes.size == self.processes.rank]
        if self.processes.is_main:
            self._say_why(name, tasks, todo)
            self._remove_strangers(name, tasks)
            if self.plan is not None:
                self.plan.begin(name, {task.file: task.key for task in tasks}, sum(task.items for task in tasks))
                with explained(self.path, "the plan"):
                    self.plan.write(self.path)
        self.processes.barrier()  # before a process writes a file that another one would remove
        started = time.monotonic()
        with progress(name, sum(tasks[n].items for n in mine)) as advance:
            for n in mine:
                self._make(name, tasks[n], advance, write=self.processes.is_main or not together)
        self.processes.barrier()
        self.manifest.reload()
        if todo:
            self.say(f"{name}: {time.monotonic() - started:.0f} s")
        return [self.path / task.file for task in tasks]

    def _unfinished(self, tasks: Sequence[Task]) -> list[int]:
        """Which files must be written; the main process decides, so that all agree."""
        todo: list[int] = []
        if self.processes.is_main:
            known = [self.manifest.find(task.file, task.key) is not None for task in tasks]
            todo = [n for n, task in enumerate(tasks) if task.fresh or not (known[n] or self._borrow(task))]
        decided: list[int] = self.processes.gather(todo)[0]
        return decided

    def _borrow(self, task: Task) -> bool:
        """Copies the file from the run that this one comes after, if it has one of this key."""
        known = [entry for entry in (self.after.entries if self.after else ()) if entry.key == task.key]
        if self.after is None or not known or self.after.find(known[-1].file, task.key) is None:
            return False
        path = self.path / task.file
        with explained(self.path, task.file):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                shutil.copyfile(self.after.folder / known[-1].file, partial)
            self.manifest.add(replace(known[-1], file=task.file, seconds=0.0, ended=round(time.time(), 3)))
        return True

    def _make(self, stage: str, task: Task, advance: Advance, write: bool) -> None:
        started = time.monotonic()
        path = self.path / task.file
        with explained(self.path, stage):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not write:
                with tempfile.TemporaryDirectory() as elsewhere:
                    task.make(Path(elsewhere) / path.name, advance)
            else:
                task.make(path, advance)
                entry = Entry(
                    stage, task.file, task.key, self.manifest.content(task.file), path.stat().st_size, task.items,
                    round(time.monotonic() - started, 3), round(time.time(), 3),
                )  # fmt: skip
                self.manifest.add(entry)

    def _say_why(self, name: str, tasks: Sequence[Task], todo: Sequence[int]) -> None:
        for n in todo:
            if not tasks[n].fresh and (wrong := self.manifest.damaged(tasks[n].file, tasks[n].key)):
                self.say(f"{str(self.path / tasks[n].file)!r} {wrong}: it is computed again")
        if tasks and not todo:
            self.say(f"{name}: already done, reused")
        elif len(todo) < len(tasks):
            self.say(f"{name}: {len(tasks) - len(todo)} of {len(tasks)} files already done, reused")

    def _remove_strangers(self, name: str, tasks: Sequence[Task]) -> None:
        """Files of other settings in the stage's own folder, which no stage would read again."""
        kept = {self.path / task.file for task in tasks}
        folder = self.path / name
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_file() and path not in kept:
                path.unlink()

    def content(self, paths: Sequence[Path]) -> list[str]:
        """Hashes of some files, for the keys of what is computed from them."""
        return [self.manifest.content(str(path.relative_to(self.path))) for path in paths]

    def log(self, row: dict[str, Any]) -> None:
        """Appends one row to `metrics.jsonl`, and hands it to the trackers."""
        if self.processes.is_main:
            self.track(row)
            with explained(self.path, METRICS), (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def forget_metrics(self, drop: Callable[[dict[str, Any]], bool]) -> None:
        """Removes rows of `metrics.jsonl`, so that steps that run again are not logged twice; and half-written lines."""

        def keeps(row: dict[str, Any]) -> bool:
            try:
                return not drop(row)
            except (KeyError, TypeError):  # a row that no run wrote
                return False

        path = self.path / METRICS
        if self.processes.is_main and path.exists():
            with explained(self.path, METRICS):
                kept = [line for line, row in read_rows(path) if keeps(row)]
                write_text(path, "".join(f"{line}\n" for line in kept))


def explored(folder: Path) -> int:
    """On how many of the first training prompts a run of `headroom` has explored; 0 in other folders."""
    if not (file := folder / HEADROOM).is_file():
        return 0
    return int(read_json(file, dict[str, Any], RunError, "Run `latentknobs headroom` again.").get("prompts", 0))


@contextmanager
def explained(folder: Path, what: str) -> Iterator[None]:
    """Turns what a disk or a device refuses (full, not writable, out of memory) into a RunError. Finished files stay."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"The device ran out of memory in {what}. Finished files are kept: lower read_batch (responses read together), "
            "pairs_per_step, or batch_size (responses generated together; makes rollouts again), and give the command again."
        ) from error
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EEXIST, errno.ENOTDIR):
            raise RunError(
                f"The run directory {str(folder)!r} cannot be written ({what}: {error.strerror}). Choose another output_dir."
            ) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(
            f"The disk that holds {str(folder)!r} is full ({what} could not be written). Finished files are kept: free "
            "some space and give the same command again."
        ) from error


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of `metrics.jsonl` that are rows, with what they say; the line that is being written is none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in iter(lambda: file.readline(LONGEST), ""):
            try:
                yield line.rstrip("\n"), fit(parse_json(line), dict[str, Any])
            except ValueError:
                continue


def write_readme(path: Path) -> None:
    """Writes `README.md` into a run directory: what its files hold."""
    lines = ["# A latentknobs run", "", "| file | what |", "|---|---|", *(f"| {file} | {what} |" for file, what in FILES)]
    (path / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def say_changes(path: Path, config: TrainConfig) -> None:
    """Says which settings differ from those of an earlier run in the same directory: what depends on them is computed again."""
    try:
        before = make_config(read_yaml(path / "config.yaml"))
    except LatentKnobsError:  # there is none, or one of another version
        return
    old, new = before.flat(), config.flat()
    names = [name for name in new if old.get(name) != new[name] and name != "output_dir"]
    changed = [f"{name} {SHORT.repr(old.get(name))} -> {SHORT.repr(new[name])}" for name in names]
    if changed:
        say(f"{str(path)!r} holds a run with other settings ({'; '.join(changed)}): what depends on them is computed again")
