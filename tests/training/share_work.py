"""One of several processes: `share_work.py FOLDER`. Fits heads together with the others and writes down what it ended with."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from bandit import fit_pairs, new_head, play
from safetensors.torch import save_file

from latentknobs.config import make_config
from latentknobs.heads.segmenters import parse_level
from latentknobs.training.checkpoint import Checkpoint
from latentknobs.training.processes import Processes

BATCHES = (8, 7, 1)  # divides evenly, does not, leaves one process without any pair
SETTINGS = {
    "steps": 30,
    "learning_rate": 0.01,
    "beta": 0.5,
    "kl": 0.05,
    "entropy_bonus": 0.05,
    "clip": 0.05,
    "checkpoint_every": 10,
}


def work(folder: Path) -> None:
    torch.set_num_threads(1)
    processes = Processes(cpu=True)
    cache, pairs = play(parse_level("every:3"), 40)
    for batch in BATCHES:
        rows: list[dict[str, Any]] = []
        path = folder / f"checkpoint-{batch}.safetensors"
        head = fit_pairs(
            new_head(cache), cache, pairs[9:], pairs[:9], make_config(SETTINGS | {"pairs_per_step": batch}),
            reference=new_head(cache, seed=1), log=rows.append, processes=processes, checkpoint=Checkpoint(path, "key"),
        )  # fmt: skip
        save_file(dict(head.state_dict()), folder / f"head-{batch}-{processes.rank}.safetensors")
        (folder / f"rows-{batch}-{processes.rank}.json").write_text(json.dumps(rows))
    ones = torch.ones(3) * (processes.rank + 1)
    processes.sum_([ones])
    processes.barrier()
    told = {
        "rank": processes.rank, "size": processes.size, "is_main": processes.is_main, "sum": ones.tolist(),
        "gathered": processes.gather({"pid": os.getpid(), "rank": processes.rank}),
    }  # fmt: skip
    (folder / f"told-{processes.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
