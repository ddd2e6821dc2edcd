"""Several training seeds: a run for each, judged on the same prompts by the same random numbers, and what they show together."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from latentknobs.config import TrainConfig, fields, make_config, read_yaml, write_yaml
from latentknobs.data.disk import write_text
from latentknobs.errors import ConfigError, RunError
from latentknobs.evaluation.accounting import save_accounts
from latentknobs.evaluation.report import Report
from latentknobs.files import path_of
from latentknobs.progress import say
from latentknobs.reporting import write_report
from latentknobs.stages import Enters
from latentknobs.training.judging import SUMMARY
from latentknobs.training.rundir import explained

if TYPE_CHECKING:
    from latentknobs.training.train import Run

MOST = 64


def train_several(
    config: TrainConfig, seeds: int, after: Path | None, train_one: Callable[[TrainConfig, Path | None], "Run"]
) -> "Run":
    """A run in its own folder for each of `seed`, `seed` + 1, ...; the adapter is that of the first.

    The first comes after the run `after`, the others after the first, whose constants have answered the held-out prompts.
    """
    if not 1 < seeds <= MOST:
        raise ConfigError(
            f"seeds={seeds!r} is not a number of training seeds. Choose from 1 to {MOST}: 3 show how much they matter."
        )
    folder, runs = path_of(config.output_dir), list["Run"]()
    for number in range(seeds):
        place = folder / f"seed-{number}"
        say(f"Training seed {number + 1} of {seeds}, in {str(place)!r}")
        one = config.replace(seed=config.seed + number, draws=config.seed, output_dir=str(place))
        runs.append(train_one(one, folder / "seed-0" if number else after))
    reports = [run.report for run in runs if run.report is not None]
    report, page = Report.join(reports) if reports else None, None
    if runs[0].is_main:
        with explained(folder, "the results of all seeds"):
            runs[0].adapter.save_pretrained(folder / "adapter")
            write_yaml(config, folder / "config.yaml")
            if report is not None:
                (folder / SUMMARY).parent.mkdir(exist_ok=True)
                write_text(folder / SUMMARY, json.dumps(report.to_dict()) + "\n")
                save_accounts(folder, report.rewards, report.accounts)
                page = write_report(first_seed(folder), report, folder / "report.html")
    return replace(runs[0], path=folder, report=report, report_path=page, runs=tuple(runs))


def first_seed(folder: Path) -> Path:
    """The run of the first seed in a folder of several, or the folder itself."""
    return found if (found := folder / "seed-0").is_dir() else folder


def check_seeds(runs: Sequence[Path]) -> None:
    """Refuses, by a ConfigError, runs that are not of one training with different seeds."""
    found: dict[int, Path] = {}
    settings: dict[str, object] = {}
    for run in runs if len(runs) > 1 else ():
        config = make_config(read_yaml(first_seed(run) / "config.yaml"))
        if (before := found.setdefault(config.seed, run)) is not run:
            raise ConfigError(f"{str(before)!r} and {str(run)!r} have the same training seed, {config.seed}. Name one of them.")
        own = {name for name, one in fields(config.learner).items() if one.enters != Enters()} - {"seed", "draws"}
        mine = {name: value for name, value in config.flat().items() if name in own}
        settings = settings or mine
        if other := [name for name in {**settings, **mine} if settings.get(name) != mine.get(name)]:
            raise ConfigError(
                f"{str(runs[0])!r} and {str(run)!r} are not training seeds of one training: {other[0]} is "
                f"{settings.get(other[0])!r} and {mine.get(other[0])!r}. Show each with a report of its own."
            )


def run_folder(path: str | Path) -> Path:
    """The folder of a run; RunError if it is not one."""
    if not ((found := path_of(path)) / "manifest.jsonl").is_file():
        raise RunError(f"There is no run in {str(path)!r}: it has no manifest.jsonl. Give the output_dir of an earlier run.")
    return found
