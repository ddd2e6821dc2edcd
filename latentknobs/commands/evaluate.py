"""`latentknobs evaluate`: a saved adapter against every baseline, on the prompts of its run or on others."""

import json
from pathlib import Path
from typing import Any

import click

from latentknobs.commands import UserPath, check_writable
from latentknobs.commands.saved import open_saved, settings_of
from latentknobs.commands.settings import config_options, parse_flags

FIELDS = (
    "model", "gguf_file", "trust_remote_code", "device", "device_map", "dtype", "prompts", "eval_prompts",
    "reward", "reward_weights", "eval_size", "tune_size", "pick", "max_new_tokens", "batch_size", "seed",
    "account",
)  # fmt: skip


@click.command()
@click.argument("adapters_or_runs", type=UserPath(), nargs=-1, required=True)
@click.option("--json", "json_path", metavar="FILE", type=UserPath(), help="Also write all rewards as JSON.")
@click.option("--seeds", metavar="INTEGER", help="Times that every policy answers every prompt.  [default: as in training]")
@click.option("--against", multiple=True, metavar="POLICY", help="Also compare with this policy: a name, e.g. "
              "`edt:base=1.4,theta=3`, or an adapter's folder; several times for several.")  # fmt: skip
@click.option("--output-dir", metavar="FOLDER", default="runs/evaluation", show_default=True,
              help="Where all responses and the report go.")  # fmt: skip
@config_options("engine")  # not that of training: its server may be gone
@config_options(*FIELDS, default="as in training")
def evaluate(
    adapters_or_runs: tuple[Path, ...], json_path: Path | None, seeds: str | None, against: tuple[str, ...], **flags: Any
) -> None:  # fmt: skip
    """Compare an adapter with every constant option, the tuned best constant, greedy, the uniform mixture, a rival, and controls.

    Several runs are taken for training seeds of one training: intervals are then over prompts and seeds. Settings left out are
    those the (first) adapter was trained with. With --eval-prompts, the best constant is tuned on --prompts; without,
    --prompts is split by hash.
    """
    from latentknobs.reporting import print_report
    from latentknobs.reporting.account import print_accounts
    from latentknobs.training.evaluate import evaluate as run_evaluation

    chosen = parse_flags(flags | {"eval_seeds": seeds})
    opened = [open_saved(path) for path in adapters_or_runs]
    adapter, folder = opened[0]
    settings = settings_of(adapter, folder, (*FIELDS, "eval_seeds", "train_prompts"), chosen) | chosen
    if "reward" in chosen and "reward_weights" not in chosen:
        settings.pop("reward_weights", None)  # those belonged to other rewards
    if "eval_size" not in chosen and settings.get("eval_size") == 0:
        settings.pop("eval_size")  # training skipped the evaluation; this command is one
    if json_path is not None:
        check_writable(json_path, "--json")
    if "prompts" in chosen and "eval_prompts" not in chosen:
        settings.pop("eval_prompts", None)  # those belonged to other prompts
    if settings.get("eval_prompts"):
        settings["tune_prompts"], settings["prompts"] = settings.pop("prompts", None), settings["eval_prompts"]
    settings.pop("eval_prompts", None)
    if "eval_seeds" in settings:
        settings["seeds"] = settings.pop("eval_seeds")
    report = run_evaluation([one for one, _ in opened], against=against, **settings)
    print_report(report)
    if report.accounts:
        print_accounts(report.accounts, report)
    click.echo(f"Report: {Path(chosen['output_dir']) / 'report.html'}")
    if json_path is not None:
        json_path.write_text(json.dumps(report.to_dict()) + "\n", encoding="utf-8")
