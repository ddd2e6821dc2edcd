"""`latentknobs serve`: starts vLLM's own server with adapters in it. Health, metrics, keys and streaming are vLLM's."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

import click

from latentknobs.engines.vllm.limits import SETTINGS, check_flags
from latentknobs.engines.vllm.policies import check
from latentknobs.engines.vllm.versions import check_version
from latentknobs.errors import ConfigError, first_line
from latentknobs.models.sources import TESTBED
from latentknobs.serving import base_of, read_picks, resolved
from latentknobs.testbed.model_files import MODEL_DIR

PLUGINS = ("latentknobs", "latentknobs_http")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.option("--adapter", "adapters", multiple=True, required=True, metavar="NAME=FOLDER",
              help="An adapter's folder, or a policy such as `edt:base=1.4,theta=3`, and the name that requests ask for it by; "
              "several times for several.")  # fmt: skip
@click.option("--print", "only_print", is_flag=True, help="Print the environment and the command instead of starting it.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve(model: str, adapters: tuple[str, ...], only_print: bool, flags: tuple[str, ...]) -> None:
    """Serve MODEL with vLLM, decoding with adapters that requests name. Flags of `vllm serve` follow after `--`.

    A request asks for an adapter with {"vllm_xargs": {"latentknobs": "NAME"}}; one that does not is vLLM's alone. docs/vllm.md
    lists the other fields, and how choices come back.
    """
    check_version()
    check_flags(flags)
    specs = parse_adapters(adapters)
    if model == TESTBED:
        model, flags = str(MODEL_DIR), ("--served-model-name", TESTBED, *flags)
    check_adapters(model, specs)
    command, environment = command_of(model, specs, flags), {"VLLM_PLUGINS": ",".join(plugins())}
    if only_print:
        click.echo(" ".join([*(f"{key}={shlex.quote(value)}" for key, value in environment.items()), shlex.join(command)]))
        return
    os.execvpe(command[0], command, os.environ | environment)


def parse_adapters(adapters: Sequence[str]) -> dict[str, str]:
    """Specs by name; ConfigError if one is not of the form NAME=FOLDER, or two share a name."""
    specs: dict[str, str] = {}
    for item in adapters:
        name, equals, spec = item.partition("=")
        if not equals or not name or not spec or ":" in name:
            raise ConfigError(
                f"--adapter {item!r} is not of the form NAME=FOLDER or NAME=POLICY. The name is what requests ask for."
            )
        if name in specs:
            raise ConfigError(f"Two adapters are called {name!r}. Give each a name of its own.")
        specs[name] = resolved(spec)
    return specs


def command_of(model: str, specs: dict[str, str], flags: Sequence[str]) -> list[str]:
    """The command that starts vLLM."""
    own = [
        "--logits-processors", "latentknobs.serving.processor:AdapterProcessor",
        "--worker-extension-cls", "latentknobs.engines.vllm.worker.PolicyWorker",
        "--additional-config", json.dumps({SETTINGS: specs}),
    ]  # fmt: skip
    if not any(flag.partition("=")[0] == "--generation-config" for flag in flags):
        own += ["--generation-config", "vllm"]  # or the model's own temperature would stand beside the adapter
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, *own, *flags]


def plugins() -> list[str]:
    """All plug-ins of vLLM that would be loaded without us, and ours: a list is the only way to switch routes on."""
    listed = os.environ.get("VLLM_PLUGINS")
    groups = ("general", "platform", "io_processor", "stat_logger")
    found = listed.split(",") if listed is not None else [p.name for g in groups for p in entry_points(group=f"vllm.{g}_plugins")]
    return sorted({*found, *PLUGINS} - {""})


def check_adapters(model: str, specs: dict[str, str]) -> None:
    """Reads every adapter as vLLM's workers will, because a mistake is quicker to find here. Errors: see `read_picks`."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        base = base_of(AutoConfig.from_pretrained(model).get_text_config(), model)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The model {model!r} cannot be read: {first_line(error)}. Give a folder or hub id.") from None
    for name, spec in specs.items():
        for policy in read_picks(spec, base, tokenizer).values():
            check(name, policy)
