"""A program of the user's own as a reward: JSON lines in, numbers out, with a time limit."""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any

from latentknobs.errors import BrokenRewardError, ConfigError
from latentknobs.rewards.identity import content_hash
from latentknobs.rewards.returned import Failed
from latentknobs.rewards.text import Texts

END = 4000  # bytes of the standard error that are read


class Command:
    """The reward that a program prints, run without a shell, once for every batch.

    Its standard input holds one JSON object for each completion: `{"prompt": ..., "completion": ..., column: value, ...}`. It
    prints one line for each, in the same order: a number, null (not applicable), or `{"score": number}`. What it prints on
    standard error is only shown when it fails.

    A batch on which it fails, takes too long, or prints another number of lines is tried again row by row, and only the rows
    on which it still does have no score; the first batch must not fail on every row. After each run it is killed together
    with all processes it started, except those that moved to a session of their own.

    Args:
        run: the command, split as a shell would, e.g. `python score.py --strict`.
        timeout: seconds for one run of the program.
        batch_size: completions in one run.
    """

    def __init__(self, run: str, timeout: float = 60.0, batch_size: int = 64) -> None:
        fact = f"The reward 'command' has run={run!r}"
        try:
            self.args = shlex.split(run)
        except ValueError as error:
            raise ConfigError(f"{fact}, which cannot be split into words: {error}. Close every quotation mark.") from None
        if not self.args or shutil.which(self.args[0]) is None:
            raise ConfigError(f"{fact}, but there is no such program. Give one that can be started, e.g. 'python score.py'.")
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

    def __call__(self, prompts: Texts, completions: Texts, completion_ids: Any = None, **columns: Any) -> list[float | None]:
        if taken := {"prompt", "completion"} & columns.keys():
            raise BrokenRewardError(
                f"The reward 'command' cannot pass on a column {min(taken)!r}: the name is reserved. Rename it."
            )
        named = {"prompt": prompts, "completion": completions} | columns
        cells = ([f"{json.dumps(name)}: {_json(name, value)}" for value in values] for name, values in named.items())
        rows = [f"{{{', '.join(row)}}}" for row in zip(*cells, strict=True)]
        batches = (rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))
        return [value for batch in batches for value in self._scores(batch)]

    def _scores(self, rows: list[str]) -> list[float | None]:
        lines, why = self._run(rows)
        if why is None and len(lines) != len(rows):
            why = f"It printed {len(lines)} lines where {len(rows)} were expected, one number for each completion."
        if why is None:
            self._worked = True
            return [_read(line) for line in lines]
        if len(rows) == 1:
            return [Failed(why)]
        values = [value for row in rows for value in self._scores([row])]
        if not self._worked and isinstance(last := values[-1], Failed):
            raise BrokenRewardError(
                f"The reward {self.__name__!r} failed on each of {len(rows)} completions. The last: {last.why}"
            )
        return values

    def _run(self, rows: list[str]) -> tuple[list[str], str | None]:
        """The lines that the program printed, and why it failed, if it did."""
        # Files in place of pipes: a process that it left behind cannot keep us waiting for the end of a pipe.
        with TemporaryFile() as stdin, TemporaryFile() as printed, TemporaryFile() as complaints:
            stdin.write("".join(f"{row}\n" for row in rows).encode())
            stdin.seek(0)
            try:
                process = subprocess.Popen(self.args, stdin=stdin, stdout=printed, stderr=complaints, start_new_session=True)
            except OSError as error:
                raise BrokenRewardError(f"The reward {self.__name__!r} cannot be started: {error.strerror}.") from None
            try:
                code: int | None = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # whatever of its process group is still there
                process.wait()
            if code is None:
                return [], f"It took longer than its timeout of {self.timeout:g} s."
            if code:
                complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - END))
                lines = [line.strip() for line in complaints.read().decode(errors="replace").split("\n") if line.strip()]
                ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return [], f"It {ended}: {lines[-1][:200] if lines else 'nothing was printed on standard error.'}"
            printed.seek(0)
            return [line.decode(errors="replace") for line in printed.read().splitlines()], None  # bytes end at line ends only


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise BrokenRewardError(
            f"The reward 'command' cannot pass on the column {name!r}, e.g. {repr(value)[:60]}: {error}. Write text or numbers."
        ) from None


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
