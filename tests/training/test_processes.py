"""Two gloo processes fit the head that one does; a plain process starts no group; broken promises are explained."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from broken_knobs import Cut
from forked import launched_as, started
from safetensors.torch import load_file
from share_work import BATCHES, work

from latentknobs import KnobSpace
from latentknobs.errors import RunError
from latentknobs.training.processes import Processes, check_agreement


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process wrote, and what two did."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [together / f"said-{rank}" for rank in range(2)]
    running = [started(work, together, env=launched_as(rank, 2, port), log=logs[rank]) for rank in range(2)]
    work(alone)
    for process, log in zip(running, logs, strict=True):
        process.join(timeout=120)
        assert process.exitcode == 0, log.read_text()
    return alone, together


@pytest.mark.parametrize("batch", BATCHES)
def test_two_processes_fit_the_head_of_one_with_the_same_global_batch(folders: tuple[Path, Path], batch: int) -> None:
    alone = load_file(folders[0] / f"head-{batch}-0.safetensors")
    both = [load_file(folders[1] / f"head-{batch}-{rank}.safetensors") for rank in range(2)]
    for name, value in alone.items():
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
def test_both_log_the_metrics_of_the_whole_batch(folders: tuple[Path, Path], batch: int) -> None:
    alone = json.loads((folders[0] / f"rows-{batch}-0.json").read_text())
    both = [json.loads((folders[1] / f"rows-{batch}-{rank}.json").read_text()) for rank in range(2)]
    assert both[0] == both[1] and len(both[0]) == 30
    for ours, theirs in zip(both[0], alone, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[name] == pytest.approx(theirs[name], abs=1e-6) for name in theirs)


def test_the_checkpoint_is_written_by_one_and_is_that_of_a_single_process(folders: tuple[Path, Path]) -> None:
    for batch in BATCHES:
        one, two = (load_file(folder / f"checkpoint-{batch}.safetensors") for folder in folders)
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    assert not list(folders[1].glob("*.partial"))


def test_processes_sum_gather_and_count(folders: tuple[Path, Path]) -> None:
    told = [json.loads((folders[1] / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert [t["rank"] for t in told] == [0, 1] and [t["is_main"] for t in told] == [True, False]
    for one in told:
        assert one["size"] == 2 and one["sum"] == [3.0] * 3
        assert [row["rank"] for row in one["gathered"]] == [0, 1]
        assert one["gathered"] == told[0]["gathered"] and len({row["pid"] for row in one["gathered"]}) == 2


def test_a_plain_process_is_alone_and_starts_no_group() -> None:
    alone = Processes()
    value = torch.ones(2)
    alone.sum_([value])
    alone.barrier()
    assert (alone.rank, alone.size, alone.is_main) == (0, 1, True) and value.tolist() == [1, 1]
    assert alone.gather("x") == ["x"]
    assert not dist.is_initialized()


@pytest.fixture
def fresh() -> Iterator[None]:
    """accelerate keeps its state in the class: a failed start must not reach other tests."""
    PartialState._reset_state()
    yield
    PartialState._reset_state()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "WORLD_SIZE=2 promises 2 processes.*RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set.*unset WORLD_SIZE"),
        ({"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no port"}, "they cannot meet: .*torchrun"),
    ],
)
def test_a_promise_of_processes_that_cannot_meet_is_explained(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], told: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (change | {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=told):
        Processes(cpu=True)


def facts_of(*specs: Any) -> dict[str, str]:
    return KnobSpace.of(*specs).facts()


def test_processes_that_resolved_other_knobs_are_told_what_differs() -> None:
    check_agreement([facts_of("temperature", "top_p")] * 3)
    Processes().agree(facts_of("temperature"))  # a single process has nothing to compare
    with pytest.raises(RunError, match=r"in their space: process 1 has .*top_p\[0.6, 1\].* 0 has .*top_p\[0.5, 1\]"):
        check_agreement([facts_of("top_p:0.5,1"), facts_of("top_p:0.6,1")])
    with pytest.raises(RunError, match=r"in the knob cut: process 2 has cuts 2.0 \(behaviour 0\), process 0 has this process"):
        check_agreement([facts_of(Cut())] * 2 + [facts_of(Cut()) | {"the knob cut": "cuts 2.0 (behaviour 0)"}])
    space = KnobSpace.of("top_p:0.5,0.8,1")
    with pytest.raises(RunError, match="differ in the options"):
        check_agreement([space.select([0, 1]).facts(), space.select([0, 2]).facts()])


def meet(folder: Path) -> None:
    processes = Processes(cpu=True)
    try:
        processes.agree({"their space": f"top_p:0.{5 + processes.rank}"})
    except RunError as error:
        (folder / f"error-{processes.rank}").write_text(str(error))


def test_two_real_processes_find_out_on_both_sides(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [started(meet, tmp_path, env=launched_as(rank, 2, port)) for rank in range(2)]
    for process in running:
        process.join(timeout=120)
    said = [(tmp_path / f"error-{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1] and "process 1 has top_p:0.6, process 0 has top_p:0.5" in said[0]
