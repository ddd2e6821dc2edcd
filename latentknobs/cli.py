"""The command line. Commands live in `latentknobs/commands/` and are imported when they are used, so that help is quick.

Results go to standard output, progress and errors to standard error. Wrong input ends with exit code 2 and one paragraph.
"""

import io
import os
import sys
from importlib import import_module
from typing import Any

import click

import latentknobs
from latentknobs.errors import LatentKnobsError

# name -> (module, attribute, one line for the overview)
COMMANDS = {
    "headroom": ("headroom", "headroom", "Whether adapting would pay, and how, before training."),
    "train": ("train", "train", "Learn to choose decoding options and show whether it was worth it."),
    "strategies": ("strategies", "strategies", "Choose a few strategies out of a large pool of options."),
    "status": ("status", "status", "Where a run stands: stages, sizes, times, and what is left."),
    "evaluate": ("evaluate", "evaluate", "Judge a saved adapter against every baseline."),
    "account": ("account", "account", "What every policy of a run trades: sensibleness, diversity, attribution."),
    "discriminator": ("discriminator", "discriminator", "Train what classifier guidance guides with, from a scored run."),
    "steer": ("steer", "steer", "Teach an adapter with a value head to follow commands in the prompt."),
    "generate": ("generate", "generate", "Write text with an adapter or a policy, coloured by what it chose."),
    "serve": ("serve", "serve", "Serve a model with vLLM, with adapters that requests choose from."),
    "report": ("report", "report", "Show the results of a run and write its HTML report again."),
    "export": ("export", "export", "Write the preferences of a run in TRL's format."),
    "engines": ("installed", "engines", "The engines that are installed."),
    "knobs": ("installed", "knobs", "The knobs that are installed."),
    "policies": ("installed", "policies", "The policies that are installed: rules, constants, mixtures."),
    "rewards": ("installed", "rewards", "The rewards that are installed."),
    "learners": ("installed", "learners", "The learners that are installed."),
}


class LazyGroup(click.Group):
    """Imports a command on its first use, and turns our errors into one paragraph."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"latentknobs.commands.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; see the module's docstring for how it ends when something is wrong."""
        try:
            return super().invoke(ctx)
        except LatentKnobsError as error:
            click.echo(f"{_who()}Error: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            kept = " Finished stages are kept: the same command resumes after the last of them."
            click.echo("\nInterrupted." + (kept if ctx.invoked_subcommand == "train" else ""), err=True)
            ctx.exit(130)


def _who() -> str:
    """Which process of several is speaking."""
    from latentknobs.progress import processes

    return f"Process {os.environ.get('RANK', '0')}: " if processes() > 1 else ""


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(latentknobs.__version__, prog_name="latentknobs")
def cli() -> None:
    """Decoding hyperparameters as latent variables that a small head learns to choose, on a frozen language model.

    `latentknobs train` needs no arguments: it learns a temperature on a packaged language model, offline.
    """


def main() -> None:
    """The console script. A character that the terminal's encoding lacks is written as an escape, instead of losing the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="latentknobs")
