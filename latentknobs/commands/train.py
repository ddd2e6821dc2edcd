"""`latentknobs train`: one option for every setting, on top of a YAML file."""

import os
import sys
from typing import Any

import click

from latentknobs.commands.saved import check_reward
from latentknobs.commands.settings import check_repeatable, config_options, parse_flags
from latentknobs.config import SECTIONS, fields, flat, make_config, read_yaml
from latentknobs.errors import ConfigError
from latentknobs.files import path_of


@click.command()
@click.option("--config", metavar="FILE.yaml", help="Settings to start from; further options win over it.")
@click.option(
    "--resume", is_flag=False, flag_value="", metavar="[RUN]",
    help="Go on with the run in this folder (or in --output-dir) with its own settings; further options win over them.",
)  # fmt: skip
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), metavar="INTEGER",
              help="Train so many times, with seeds that follow each other, and judge them together.")  # fmt: skip
@click.option("--after", metavar="RUN", help="Copy finished files of the same settings from this run, e.g. that of `headroom`.")
@click.option("--num-processes", type=click.IntRange(1), metavar="INTEGER", help="Share the work over this many processes.")
@config_options()
def train(
    config: str | None, resume: str | None, seeds: int, after: str | None, num_processes: int | None, **flags: Any
) -> None:  # fmt: skip
    """Learn to choose decoding options from preferences, then compare with every constant.

    Everything has a default: `latentknobs train` alone learns a temperature on the packaged language model. A run that was
    interrupted goes on from its last finished file when the same command is repeated, or with --resume.
    """
    settings = parse_flags(flags)
    if resume is not None:
        config, settings = _resumed(config, resume, settings)
    # wrong settings are refused before anything large is imported, and once, not by every process
    make_config(read_yaml(config) if config else {}, settings)
    if num_processes is not None and num_processes > 1 and "WORLD_SIZE" not in os.environ:
        sys.exit(_launch(num_processes))
    from latentknobs.reporting import print_report, read_findings
    from latentknobs.training.train import train as run_training

    run = run_training(config=config, resume=resume is not None, seeds=seeds, after=after, **settings)
    if not run.is_main:
        return
    if run.report is not None:
        print_report(run.report, findings=read_findings(run.path))
    click.echo(f"Adapter: {run.path / 'adapter'}")
    if run.report_path is not None:
        click.echo(f"Report:  {run.report_path}")
    click.echo(f"Try it:  latentknobs generate {run.path}")


def _resumed(config: str | None, run: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The settings file of a run, and the settings that win over it."""
    if config is not None:
        raise ConfigError("--resume reads the settings of the run itself. Leave out --config, or leave out --resume.")
    folder = path_of(run or settings.get("output_dir") or str(fields()["output_dir"].info.default))
    file = folder / "config.yaml"
    if not file.exists():
        raise ConfigError(f"There is no run to resume in {str(folder)!r}: it has no config.yaml. Start it without --resume.")
    saved = read_yaml(file)
    if not saved:
        raise ConfigError(f"{str(file)!r} holds no settings, so the run would start over with others. Start it without --resume.")
    if not any(isinstance(saved.get(section), dict) for section in SECTIONS):
        raise ConfigError(
            f"The run in {str(folder)!r} was made by an earlier edition of latentknobs, whose files cannot be used again, so it "
            f"must start anew: latentknobs train --config {file} --output-dir NEW_FOLDER."
        )
    for name, value in flat(saved).items():
        if name not in settings:
            check_repeatable(name, value, folder)
            if name in ("reward", "second_reward"):
                check_reward(value, folder)
    # the folder may come from elsewhere: running its model's code needs consent again
    return str(file), {"trust_remote_code": False} | settings | {"output_dir": str(folder)}


def _launch(count: int) -> int:
    """Starts the same command `count` times on this machine through torch's launcher; the exit code of the first that failed."""
    import logging
    from uuid import uuid4

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    arguments = sys.argv[1:]
    at = next(n for n, argument in enumerate(arguments) if argument.startswith("--num-processes"))
    del arguments[at : at + (1 if "=" in arguments[at] else 2)]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes report their own errors
    how = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=str(uuid4()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(how, sys.executable)("-m", "latentknobs", *arguments)
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode)
    return 0
