"""Metrics for tensorboard, wandb, trackio and others, through accelerate's trackers, where the config names them.

`metrics.jsonl` holds the same rows always, so a tracker may fail without loss. Without trackers, nothing is imported or sent.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentknobs.errors import ConfigError, did_you_mean
from latentknobs.progress import say, speaks

PROJECT = "latentknobs"
PLAIN = (bool, int, float, str)


class Trackers:
    """Open trackers of a run, by accelerate's names. Use it as a context manager; only the first process has any.

    Those that write files get a folder of their name in `path`; the settings are stored once with each. ConfigError if one is not
    known or not installed, or cannot be started.
    """

    def __init__(self, names: Sequence[str], path: Path, settings: Mapping[str, Any]) -> None:
        check_trackers(names)
        self.path, self.settings = path, settings
        self.names = list(dict.fromkeys(names)) if speaks() else []
        self._started: dict[str, Any] = {}
        self._failed: set[str] = set()

    def __enter__(self) -> "Trackers":
        try:
            for name in self.names:
                self._start(name)
        except ConfigError:
            self._finish()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of metrics, as it stands in `metrics.jsonl`. `round` and `head` become part of the names: `round-1/main/loss`.

        Steps go on from one head to the next, because some trackers refuse to go back. A tracker that fails is switched off.
        """
        place = [f"round-{row['round']}"] if "round" in row else []
        place += [str(row["head"])] if "head" in row else []
        values = {"/".join([*place, name]): _plain(value) for name, value in row.items() if name not in ("round", "head", "step")}
        step = self._clock(row) if self._started else 0
        for name, tracker in self._started.items():
            if name in self._failed:
                continue
            try:
                tracker.log(values, step=step)
            except Exception as error:  # of whatever kind: a lost connection must not end a run
                self._failed.add(name)
                say(
                    f"The tracker {name!r} failed and gets nothing more: {type(error).__name__}: {error}. The run goes on, "
                    "and metrics.jsonl holds every row."
                )

    def _clock(self, row: Mapping[str, Any]) -> int:
        before = 2 * (row.get("round", 1) - 1) + (row.get("head", "main") != "main")
        return int(before * self.settings["steps"] + row["step"])

    def _start(self, name: str) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # the trackers' own logging needs it; a single process starts no group
        kind = LOGGER_TYPE_TO_CLASS[name]
        folder = {"logging_dir": str(self.path / name)} if kind.requires_logging_directory else {}
        try:
            tracker = kind(PROJECT, **folder)
            tracker.start()
            self._started[name] = tracker
            tracker.store_init_configuration({key: _plain(value) for key, value in self.settings.items()})
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise ConfigError(f"The tracker {name!r} cannot be started: {why}. Set it up, or leave it out.") from error

    def _finish(self) -> None:
        for name, tracker in self._started.items():
            try:
                tracker.finish()
            except Exception as error:
                say(f"The tracker {name!r} could not be closed: {type(error).__name__}: {error}. metrics.jsonl holds every row.")
        self._started = {}


def check_trackers(names: Sequence[str]) -> None:
    """ConfigError if a tracker is unknown or not installed; it says which one to use or to install."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"There is no tracker {name!r}. {did_you_mean(name, LOGGER_TYPE_TO_CLASS)}")
        if name in LoggerType.list() and name not in map(str, get_available_trackers()):
            raise ConfigError(f"The tracker {name!r} is not installed. pip install {name}, or leave it out of trackers.")


def _plain(value: Any) -> Any:
    return value if isinstance(value, PLAIN) else str(value)
