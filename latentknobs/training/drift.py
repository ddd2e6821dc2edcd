"""The stage that compares the engine that sampled with the one that reads."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from latentknobs.content import digest
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import write_lines
from latentknobs.engines.base import Engine
from latentknobs.engines.served import Drift, measure_drift
from latentknobs.knobs.space import KnobSpace
from latentknobs.progress import Advance
from latentknobs.training.rundir import RunDir, Task
from latentknobs.training.sampling import count_lines, read_all

RESPONSES = 64  # of all, evenly spread


def measure(
    run: RunDir, engine: Engine, space: KnobSpace, stage: str, prompts: Sequence[Prompt], rollouts: Sequence[Path], key: str
) -> None:
    """Says how far `engine` is from a reading on some of its rollouts, and writes it to `drift.jsonl` of the round."""

    def make(path: Path, advance: Advance) -> None:
        every = max(1, sum(map(count_lines, rollouts)) // RESPONSES)
        some = list(islice(read_all(rollouts), 0, None, every))
        write_lines(path, [measure_drift(engine, space, [prompts[row.prompt].ids for row in some], some)])

    task = Task(f"{stage}/drift.jsonl", digest(key, run.content(rollouts), engine.identity), make)
    [path] = run.stage(f"{stage}/drift", [task])
    run.say(f"{stage}: {engine.name}: {Drift(**json.loads(path.read_text()))}")
