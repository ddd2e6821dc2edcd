"""`latentknobs generate`: text from a model under an adapter or any policy, coloured by what it chose."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from latentknobs import testbed
from latentknobs.adapter import KnobAdapter
from latentknobs.commands.saved import open_saved, settings_of
from latentknobs.commands.settings import config_options, parse_flags
from latentknobs.config import TrainConfig, make_config
from latentknobs.data.evidence import WITHOUT
from latentknobs.data.prompts import Prompt, check_lengths, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.engines.transformers.frozen import context_length, input_device
from latentknobs.errors import ConfigError
from latentknobs.models.sources import TESTBED, check_vocabulary, load_model
from latentknobs.policies import Pick, Policy
from latentknobs.policies.names import policy_of
from latentknobs.reporting import coloured, legend
from latentknobs.reporting.colours import Scale
from latentknobs.reporting.samples import token_texts

FIELDS = (
    "model", "gguf_file", "trust_remote_code", "device", "device_map", "dtype", "max_new_tokens", "batch_size", "pick", "seed",
)  # fmt: skip


@click.command()
@click.argument("adapter_or_run", required=False, type=click.Path(path_type=Path))
@click.option("--policy", "spec", metavar="NAME[:KEY=VALUE,...]", help="A policy by name instead of an adapter, e.g. "
              "`edt:base=1.4,theta=3`, `mirostat:tau=3`, `constant:temperature=0.7,top_p=0.9`, `greedy`.")  # fmt: skip
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="What to continue; several times for several prompts. "
              "`\\n` is a line break. Without it, the testbed model answers one prompt of each of its tasks.")  # fmt: skip
@click.option("--without-evidence", "without", multiple=True, metavar="TEXT", help="The prompt without its evidence, for "
              "guidance: as many as there are prompts.")  # fmt: skip
@config_options(*FIELDS, default="as in training")
def generate(
    adapter_or_run: Path | None, spec: str | None, texts: tuple[str, ...], without: tuple[str, ...], **flags: Any
) -> None:  # fmt: skip
    """Continue prompts with an adapter on the model it was trained on, or with any policy by name.

    On a terminal every token stands on the colour of its value of the first knob; elsewhere the text is plain.
    """
    chosen = parse_flags(flags)
    adapter, config = _settings(adapter_or_run, spec, chosen)
    if not texts and config.model != TESTBED:
        raise ConfigError(f"The model {config.model!r} needs something to continue. Give --prompt 'TEXT', once or several times.")
    model, tokenizer = load_model(config.model, config)
    policy = _policy(adapter, spec, model, tokenizer, config.pick, strict="model" not in chosen)
    prompts = make_prompts(_rows(texts, without) or testbed.prompts("mixture", "eval", 3), tokenizer)
    check_lengths(prompts, config.max_new_tokens, context_length(model))
    check_vocabulary(model, prompts)
    rollouts = roll_out(
        model, tokenizer, prompts, policy, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, seed=config.seed
    )
    _show(Console(highlight=False, soft_wrap=True), policy, tokenizer, prompts, rollouts)


def _settings(path: Path | None, spec: str | None, chosen: dict[str, Any]) -> tuple[KnobAdapter | None, TrainConfig]:
    """The adapter, where one is named, and the settings: the user's, then those of training."""
    if (path is None) == (spec is None):
        raise ConfigError("Name one of the two: an adapter or run directory, or --policy NAME[:KEY=VALUE,...].")
    if path is None:
        return None, make_config(chosen)
    adapter, folder = open_saved(path)
    return adapter, make_config(settings_of(adapter, folder, FIELDS, chosen), chosen)


def _policy(adapter: KnobAdapter | None, spec: str | None, model: Any, tokenizer: Any, pick: Pick, strict: bool) -> Policy:
    if adapter is None:
        return policy_of(str(spec), tokenizer)
    adapter.check_model(model, strict)
    adapter.head.to(input_device(model))
    return adapter.policy(pick)


def _rows(texts: Sequence[str], without: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of prompts from the command line."""
    if without and len(without) != len(texts):
        numbers = f"There are {len(texts)} --prompt and {len(without)} --without-evidence"
        raise ConfigError(f"{numbers}. Give one for each prompt, or none.")
    lines = [[text.replace("\\n", "\n") for text in some] for some in (texts, without or [""] * len(texts))]
    return [{"prompt": text} | ({WITHOUT: other} if other else {}) for text, other in zip(*lines, strict=True)]


def _show(console: Console, policy: Policy, tokenizer: Any, prompts: Sequence[Prompt], rollouts: list[Rollout]) -> None:
    """A dim prompt, its coloured response, an empty line; and the legend at the end."""
    knob, is_grid = policy.space.names[0], rollouts[0].options is not None
    found = [values[0] for rollout in rollouts for values in rollout.values]
    scale = Scale.of(knob, policy.space.options) if is_grid or not found else Scale.over(knob, found)
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        pieces, special = token_texts(tokenizer, rollout.ids, prompt.ids)
        seen = [t for t, is_special in enumerate(special) if not is_special]
        values = [rollout.values[t][0] for t in seen]
        console.print(Text.assemble((prompt.text, "dim"), coloured([pieces[t] for t in seen], values, scale)), end="\n\n")
    if console.is_terminal:
        console.print(legend(scale))
