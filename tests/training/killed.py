"""Runs `train` in a fresh process that kills itself (SIGKILL) at a chosen moment. Used by test_killed.py and test_steps.py.

Moments are counted in changes of the file system that the process is about to make (files opened for writing, renamed,
removed), which is where half-finished work could do harm; or they are a time, which mostly falls into computation.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS = {
    "knobs": ["temperature:0,0.5,1"], "prompts": "testbed:stories", "train_prompts": 10, "rollouts": 3, "rounds": 2,
    "eval_size": 4, "eval_seeds": 1, "tune_size": 3, "max_new_tokens": 8, "batch_size": 8, "shard_size": 8, "hidden": 8,
    "steps": 12,
    "pairs_per_step": 4, "checkpoint_every": 4, "validation": 0.2,
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def main(folder: Path, moment: str, log: Path, settings: Mapping[str, Any] = SETTINGS) -> None:
    """Args: the run directory; `never`, `at:PATH:N` (the Nth change there) or `after:SECONDS`; where to tell how long it took."""
    from latentknobs.training.train import train

    kind, _, value = moment.partition(":")
    wanted, _, number = value.partition(":")
    seen: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.truncate"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        if str(arguments[0]).startswith(str(folder / wanted)):
            seen.append(event)
            if kind == "at" and len(seen) == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    if kind == "after":
        threading.Timer(float(value), lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    started = time.monotonic()
    train(**settings, output_dir=folder)
    log.write_text(json.dumps({"changes": len(seen), "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
