"""Trackers: real tensorboard files hold what was logged; a tracker that fails ends nothing; nothing asked, nothing imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed
from accelerate import tracking
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentknobs.config import make_config
from latentknobs.errors import ConfigError
from latentknobs.training.tracking import Trackers, check_trackers

SETTINGS = make_config({"steps": 10, "knobs": ["temperature", {"top_p": [0.5, 1]}], "seed": 3}).flat()
LAUNCHED = {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "RANK": "1"}


class Fragile(tracking.GeneralTracker):
    """A tracker whose connection is lost after two rows, or that never comes up."""

    name, requires_logging_directory, main_process_only = "fragile", False, False
    made: list["Fragile"]
    starts = True

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name, self.rows, self.is_finished = run_name, [], False
        Fragile.made.append(self)

    @property
    def tracker(self) -> "Fragile":
        return self

    def start(self) -> None:
        if not Fragile.starts:
            raise RuntimeError("no key")

    def store_init_configuration(self, values: dict) -> None:
        self.settings = values

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        if len(self.rows) == 2:
            raise ConnectionError("gone")
        self.rows.append((values, step))

    def finish(self) -> None:
        self.is_finished = True
        raise ConnectionError("still gone")


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> type[Fragile]:
    """Offered to accelerate under its own name, as third parties do."""
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "fragile", Fragile)
    monkeypatch.setattr(Fragile, "made", [], raising=False)
    return Fragile


def row(step: int, head: str = "main", number: int = 1) -> dict[str, object]:
    return {"round": number, "head": head, "step": step, "loss": 1 / step, "validation_accuracy": 0.5 + step / 100}


def test_tensorboard_holds_every_row_and_the_settings(tmp_path: Path) -> None:
    rows = [row(step) for step in (1, 2, 10)] + [row(step, "entropy") for step in (1, 2)] + [row(1, "main", 2)]
    with Trackers(["tensorboard", "tensorboard"], tmp_path, SETTINGS) as trackers:
        for one in rows:
            trackers.log(one)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "latentknobs"))
    events.Reload()
    read = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert read["round-1/main/loss"] == [(1, 1.0), (2, 0.5), (10, pytest.approx(0.1))]
    assert read["round-1/entropy/loss"] == [(11, 1.0), (12, 0.5)]  # behind the ten steps of the first head
    assert read["round-2/main/validation_accuracy"] == [(21, pytest.approx(0.51))]
    assert len(read) == 6
    (stored,) = (tmp_path / "tensorboard").rglob("hparams.yml")
    assert "seed: 3" in stored.read_text() and "top_p" in stored.read_text()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tensorbord", r"There is no tracker 'tensorbord'\. Did you mean \"tensorboard\"\? Known: aim, clearml"),
        ("dvclive", r"The tracker 'dvclive' is not installed\. pip install dvclive, or leave it out of trackers"),
    ],
)
def test_names_are_checked_before_anything_starts(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        Trackers(["tensorboard", name], tmp_path, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_fails_is_switched_off_and_the_run_goes_on(
    fragile: type[Fragile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Trackers(["fragile", "tensorboard"], tmp_path, SETTINGS) as trackers:
        for step in range(1, 6):
            trackers.log(row(step))
    (made,) = fragile.made
    assert [step for _, step in made.rows] == [1, 2] and made.is_finished
    assert made.rows[0][0] == {"round-1/main/loss": 1.0, "round-1/main/validation_accuracy": 0.51}
    assert made.settings["knobs"] == "['temperature', {'top_p': [0.5, 1.0]}]" and made.settings["steps"] == 10
    events = EventAccumulator(str(tmp_path / "tensorboard" / "latentknobs"))
    events.Reload()
    assert len(events.Scalars("round-1/main/loss")) == 5
    told = capsys.readouterr().err
    assert told.count("The tracker 'fragile' failed and gets nothing more: ConnectionError: gone. The run goes on") == 1
    assert "The tracker 'fragile' could not be closed: ConnectionError: still gone" in told


def test_a_tracker_that_cannot_start_is_an_error_and_closes_the_others(
    fragile: type[Fragile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fragile, "starts", False)
    trackers = Trackers(["tensorboard", "fragile"], tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match=r"The tracker 'fragile' cannot be started: RuntimeError: no key\. Set it up, or leave"):
        trackers.__enter__()
    trackers.log(row(1))  # to nobody
    assert not fragile.made[0].rows


def test_only_the_first_process_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    with Trackers(["tensorboard"], tmp_path, SETTINGS) as trackers:
        trackers.log(row(1))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="There is no tracker 'nope'"):  # the same error everywhere, so that nobody waits
        check_trackers(["nope"])


def test_nothing_asked_nothing_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from latentknobs.training.tracking import Trackers\n"
        "with Trackers((), None, {}) as trackers: trackers.log({'step': 1, 'loss': 0.5})\n"
        "sys.exit(any(name.split('.')[0] in ('accelerate', 'tensorboard', 'torch') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
