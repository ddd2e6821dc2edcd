"""Shared by the speed benchmarks: interleaved medians of one process with one thread, tables with targets, JSON.

Ratios inside one run are what counts. Contestants take turns, so that whatever else the machine does hits all of them. On a
GPU a time is that of a call and of all the work it starts: both clocks are read with nothing left to do.
"""

import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

Row = dict[str, Any]


def interleaved(
    contestants: dict[str, Callable[[], Any]], rounds: int = 5, least: float = 0.0, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each contestant; one warm-up each, then turns.

    Args:
        least: keep taking turns until this many seconds have passed, within 20 times the rounds.
        clock: `time.process_time` on a machine that does other work: it counts this process alone.
    """
    return {name: median(values) for name, values in turns(contestants, rounds, least, clock).items()}


def turns(
    contestants: dict[str, Callable[[], Any]], rounds: int = 5, least: float = 0.0, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """All the seconds behind `interleaved`: the n-th of one contestant and the n-th of another belong to the same turn."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    begin, turn = time.perf_counter(), 0
    while turn < rounds or (time.perf_counter() - begin < least and turn < 20 * rounds):
        for name, run in contestants.items():
            finish_gpu()
            start = clock()
            run()
            finish_gpu()
            seconds[name].append(clock() - start)
        turn += 1
    return seconds


def finish_gpu() -> None:
    """Waits for a GPU, where there is one in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {**versions, "threads": torch.get_num_threads(), "device": name}


def synthetic_logits(N: int, V: int, seed: int = 0) -> Tensor:
    """(N, V) float32: a Gaussian bulk of deviation 2 and up to 300 tokens boosted by a power law.

    Entropies of rows are 0.9 / 1.6 / 3.1 nats (10, 50, 90 %); the nucleus of top-p 0.95 has more than 256 tokens in 6 % of
    rows at V = 32,000 and in 9 % at V = 128,256.
    """
    random = torch.Generator().manual_seed(seed)
    boosted = min(300, V // 4)
    logits_NV = torch.randn(N, V, generator=random) * 2
    top_N = torch.rand(N, generator=random) * 7 + torch.tensor(float(V)).log() + 3.5
    slope_N = 1.2 + 1.8 * torch.rand(N, generator=random)
    rank = torch.arange(1, boosted + 1).log()
    for n in range(N):
        where = torch.randperm(V, generator=random)[:boosted]
        logits_NV[n, where] = top_N[n] - slope_N[n] * rank + torch.randn(boosted, generator=random) * 0.5
    return logits_NV


def peak_extra(run: Callable[[], Any]) -> float | None:
    """Bytes by which a call raises the process's peak memory; None where the system does not tell (it is not Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or the call would reuse what earlier ones have left
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return max(_status("VmHWM") - before, 0.0)
    except (OSError, AttributeError):
        return None


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def report(title: str, rows: list[Row], json_path: str | None, note: str = "") -> None:
    """Prints rows as a table and, with a path, writes them as JSON. A `target` of a ratio is met or missed in colour."""
    table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
    names = list(dict.fromkeys(name for row in rows for name in row if name != "met"))
    for name in names:
        table.add_column(name, justify="left" if isinstance(rows[0].get(name), str) else "right")
    for row in rows:
        style = None if row.get("met") is None else "green" if row["met"] else "red"
        table.add_row(*(_shown(row.get(name)) for name in names), style=style)
    Console(width=None if Console().is_terminal else 150).print(table)
    if json_path:
        path = Path(json_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"title": title, "machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
