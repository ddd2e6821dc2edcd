"""A program of the user's own as a reward: JSON lines in, numbers out, with a time limit."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Any

from latentknobs.errors import BrokenRewardError, ConfigError
from latentknobs.rewards.identity import content_hash
from latentknobs.rewards.returned import Failed
from latentknobs.rewards.text import Messages

END = 4000  # bytes of the standard error that are looked at


class Command:
    """The reward that a program prints, run without a shell, once for every batch.

    Its standard input holds one JSON object for each completion: `{"prompt": ..., "completion": ..., column: value, ...}`. It
    prints one line for each, in the same order: a number, null (not applicable), or `{"score": number}`. What it prints on
    standard error is only shown when it fails.

    A batch on which it fails, takes too long, or prints another number of lines is asked again row by row, and only the rows
    on which it still does have no score; the first batch must not fail on every row. After each run it is killed together
    with all processes it started, except those that moved to a session of their own.

    Args:
        run: the command, split as a shell would, e.g. `python score.py --strict`.
        timeout: seconds for one run of the program.
        batch_size: completions in one run.
    """

    def __init__(self, run: str, timeout: float = 60.0, batch_size: int = 64) -> None:
        told = f"The reward 'command' has run={run!r}"
        try:
            self.args = shlex.split(run)
        except ValueError as error:
            raise ConfigError(f"{told}, which cannot be split into words: {error}. Close every quotation mark.") from None
        if not self.args or shutil.which(self.args[0]) is None:
            raise ConfigError(f"{told}, but there is no such program. Give one that can be started, e.g. 'python score.py'.")
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise ConfigError(f"The reward 'command' has timeout={timeout!r}: give a number of seconds above 0.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"The reward 'command' has batch_size={batch_size!r}: give a whole number from 1.")
        self.timeout, self.batch_size = timeout, batch_size
        self.__name__ = f"command({run[:60]})"
        self._worked = False

    @property
    def version(self) -> str:
        """Changes when a file that the command names is edited."""
        return repr([content_hash(arg) for arg in self.args])

    def __call__(
        self, prompts: Sequence[str | Messages], completions: Sequence[str | Messages], **columns: Any
    ) -> list[float | None]:
        if taken := {"prompt", "completion"} & columns.keys():
            raise BrokenRewardError(f"The reward 'command' cannot pass on a column {min(taken)!r}, its own word. Rename it.")
        rows = [
            json.dumps({"prompt": prompt, "completion": completion} | {name: values[n] for name, values in columns.items()})
            for n, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        return [
            value for start in range(0, len(rows), self.batch_size) for value in self._ask(rows[start : start + self.batch_size])
        ]

    def _ask(self, rows: list[str]) -> list[float | None]:
        lines, why = self._run(rows)
        if why is None and len(lines) != len(rows):
            why = f"It printed {len(lines)} lines where {len(rows)} were expected, one number for each completion."
        if why is None:
            self._worked = True
            return [_read(line) for line in lines]
        if len(rows) == 1:
            return [Failed(why)]
        values = [value for row in rows for value in self._ask([row])]
        last = values[-1]
        if not self._worked and isinstance(last, Failed):
            raise BrokenRewardError(
                f"The reward {self.__name__!r} failed on each of {len(rows)} completions. The last: {last.why}"
            )
        return values

    def _run(self, rows: list[str]) -> tuple[list[str], str | None]:
        """The lines that the program printed, and why it failed, if it did."""
        # Files in place of pipes: a process that it left behind cannot keep us waiting for the end of a pipe.
        with TemporaryFile() as asked, TemporaryFile() as answered, TemporaryFile() as told:
            asked.write("".join(f"{row}\n" for row in rows).encode())
            asked.seek(0)
            try:
                process = subprocess.Popen(self.args, stdin=asked, stdout=answered, stderr=told, start_new_session=True)
            except OSError as error:
                raise BrokenRewardError(f"The reward {self.__name__!r} cannot be started: {error.strerror}.") from None
            try:
                code: int | None = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
            if code is None:
                return [], f"It took longer than its timeout of {self.timeout:g} s."
            if code:
                ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return [], f"It {ended}: {_last_line(told)}"
            answered.seek(0)
            return answered.read().decode(errors="replace").splitlines(), None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills whatever of the program's process group is still there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - END))
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing was printed on standard error."


def _read(line: str) -> float | None:
    try:
        value = json.loads(line)
    except ValueError:
        value = line
    if isinstance(value, dict) and "score" in value:
        value = value["score"]
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return Failed(f'It printed {line[:80]!r}, where a number, null or {{"score": number}} was expected.')
