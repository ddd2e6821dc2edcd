"""The processes of one run: `accelerate launch`, `torchrun`, or a plain single process, which starts no process group.

With several, all of them hold the same model and settings, share the files of the run directory, and meet here. One that
fails ends alone; its launcher then ends the others.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from latentknobs.errors import RunError, first_line

PATIENCE = timedelta(days=7)  # the others wait for the process with the slowest file
LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what a launcher sets beside WORLD_SIZE


class Processes:
    """This process, number `rank` of `size`, among all of a run; RunError if the environment promises others that do not come.

    With `cpu` they meet over gloo although there is an accelerator; None: only where there is none. With `alone` they share
    nothing: each does all of the work.
    """

    def __init__(self, cpu: bool | None = None, alone: bool = False) -> None:
        promised = 1 if alone else int(os.environ.get("WORLD_SIZE") or 1)
        if promised > 1 and not _started():
            _start(promised, not torch.accelerator.is_available() if cpu is None else cpu)
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if _started() and not alone else (0, 1)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files that are written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until all processes reach this line."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The data of every process, by rank. The values must be plain data."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, facts: Mapping[str, str]) -> None:
        """RunError, in every process, if they know other facts; it names the first that differs."""
        check_agreement(self.gather(dict(facts)))

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Adds up tensors over all processes, in place; all then hold the same bits."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)


def check_agreement(facts_R: Sequence[Mapping[str, str]]) -> None:
    """`Processes.agree`, from the facts of all processes."""
    first, *others = facts_R
    for rank, other in enumerate(others, 1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                raise RunError(
                    f"The processes differ in {name}: process {rank} has {other.get(name)}, process 0 has {first.get(name)}. "
                    "Install the same versions everywhere, and start all processes with the same settings."
                )


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def _start(promised: int, cpu: bool) -> None:
    """A process group as accelerate makes it: by backend of the device, from the environment of the launcher."""
    from accelerate import PartialState

    missing = [name for name in LAUNCHED if name not in os.environ]
    why = f"{', '.join(missing)} not set" if missing else "no process group came about"
    if not missing:
        try:
            PartialState(cpu=cpu, timeout=PATIENCE)
        except (ValueError, RuntimeError) as error:
            why = first_line(error)
    if not _started():
        raise RunError(
            f"WORLD_SIZE={promised} promises {promised} processes, but they cannot meet: {why}. Start them with `accelerate "
            "launch` or `torchrun`, or unset WORLD_SIZE to work in a single process."
        )
