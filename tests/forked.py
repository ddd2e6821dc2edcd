"""Processes of their own for tests: from one server that has imported everything, whichever test starts it.

A fork of the tests' own process would not do: torch's threads do not survive one. Where a test is about starting Python (its
command line, its hash seed, its launchers), it starts Python.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "latentknobs.training.train", "latentknobs.models.loading"])


def started(function: Callable[..., Any], *arguments: Any, env: Mapping[str, str] | None = None, log: Path | None = None) -> Any:
    """A process that has begun to call a function with arguments that pickle; its output goes to `log`, if there is one."""
    process: ForkServerProcess = CONTEXT.Process(target=_call, args=(function, arguments, dict(env or {}), log))
    process.start()
    return process


def launched_as(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment that a launcher gives to a process."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    names = {name: str(value) for name, value in told.items()}
    return names | {"MASTER_ADDR": "127.0.0.1"}


def finished(function: Callable[..., Any], *arguments: Any, env: Mapping[str, str] | None = None, log: Path | None = None) -> int:
    """Its exit code."""
    process = started(function, *arguments, env=env, log=log)
    process.join()
    return int(process.exitcode)


def run_script(script: Path, *arguments: str) -> None:
    """What `python script arguments...` does in the folder of the script."""
    os.chdir(script.parent)
    sys.argv, sys.path[:0] = [str(script), *arguments], [str(script.parent)]
    runpy.run_path(str(script), run_name="__main__")


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], env: dict[str, str], log: Path | None) -> None:
    import torch

    os.environ.update(env)
    torch.set_num_threads(1)
    if log is not None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    function(*arguments)
