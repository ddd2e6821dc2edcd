"""`latentknobs steer`: teach a value head to follow commands."""

from pathlib import Path
from typing import Any

import click

from latentknobs.commands import UserPath, check_writable
from latentknobs.commands.saved import open_saved, settings_of
from latentknobs.commands.settings import config_options, parse_flags
from latentknobs.config import make_config
from latentknobs.data.tables import read_rows
from latentknobs.errors import ConfigError

FIELDS = ("model", "gguf_file", "trust_remote_code", "device", "device_map", "dtype")
NUMBERS = {"margin": "Least difference of mean values, in log-odds of their share of a range.",
           "anchor": "How strongly the values at plain prompts are held.",
           "copies": "Responses to each version of a prompt.", "max_new_tokens": "Their longest length.",
           "steps": "Steps of the optimiser.", "seed": "Of everything random."}  # fmt: skip
DEFAULTS: dict[str, Any] = {"margin": 0.5, "anchor": 1.0, "copies": 1, "max_new_tokens": 64, "steps": 300, "seed": 0}


def _numbers(command: Any) -> Any:
    for name, text in reversed(NUMBERS.items()):
        kind = click.FloatRange(0) if isinstance(DEFAULTS[name], float) else click.IntRange(0 if name == "seed" else 1)
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=kind, default=DEFAULTS[name], show_default=True, help=text)(command)
    return command


@click.command()
@click.argument("adapter_or_run", type=UserPath())
@click.option("--prompts", required=True, metavar="FILE.jsonl", help="Prompts to steer on; texts, in a column `prompt`.")
@click.option("--low", required=True, multiple=True, metavar="TEXT", help="A command for less chance, e.g. 'Be precise. "
              "{prompt}'. `\\n` is a line break; several take turns.")  # fmt: skip
@click.option("--high", required=True, multiple=True, metavar="TEXT", help="The same for more chance.")
@click.option("--out", required=True, metavar="FOLDER", type=UserPath(), help="Where the steered adapter is written.")
@_numbers
@config_options(*FIELDS, default="as in training")
def steer(
    adapter_or_run: Path, prompts: str, low: tuple[str, ...], high: tuple[str, ...], out: Path, **flags: Any
) -> None:  # fmt: skip
    """Write a copy of an adapter with a value head that follows commands in the prompt: lower values after --low, higher after
    --high, and its own at plain prompts. The model must be able to read the commands. See docs/continuous.md.
    """
    from latentknobs.models.sources import load_model
    from latentknobs.training.steering import steer as run_steering

    numbers = {name: flags.pop(name) for name in NUMBERS}
    chosen = parse_flags(flags)
    adapter, folder = open_saved(adapter_or_run)
    if out.exists() and out.resolve() == folder.resolve():
        raise ConfigError(f"--out {str(out)!r} is the folder of the adapter itself, which stays as it is. Choose another one.")
    check_writable(out / "knob_config.json" if out.is_dir() else out, "--out")
    config = make_config(settings_of(adapter, folder, FIELDS, chosen), chosen)
    rows = read_rows(prompts)
    model, tokenizer = load_model(config.model, config)
    commands = {"low": low, "high": high}
    texts = {name: [text.replace("\\n", "\n") for text in some] for name, some in commands.items()}
    run_steering(adapter, rows, model=model, tokenizer=tokenizer, **texts, **numbers).save_pretrained(out)  # type: ignore[arg-type]
    click.echo(f"Steered adapter: {out}\nTry it:  latentknobs generate {out} --prompt TEXT")
