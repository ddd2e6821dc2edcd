"""`latentknobs generate`: text from the adapter's own model, coloured by what the head chose."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from latentknobs.adapter import KnobAdapter, check_base, describe_model
from latentknobs.commands.saved import open_saved, settings_of
from latentknobs.commands.settings import config_options, given
from latentknobs.config import make_config
from latentknobs.data.prompts import Prompt, check_lengths, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.engines.transformers.frozen import context_length, input_device
from latentknobs.errors import ConfigError
from latentknobs.models.sources import TESTBED, check_vocabulary, load_model
from latentknobs.reporting import coloured, legend
from latentknobs.reporting.colours import Scale
from latentknobs.reporting.samples import token_texts

FIELDS = ("model", "trust_remote_code", "device", "device_map", "dtype", "max_new_tokens", "batch_size", "pick", "seed")


@click.command()
@click.argument("adapter_or_run", type=click.Path(path_type=Path))
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="What to continue; several times for several prompts. "
              "`\\n` is a line break. Without it, the testbed model answers one prompt of each of its tasks.")  # fmt: skip
@config_options(*FIELDS, default="as in training")
def generate(adapter_or_run: Path, texts: tuple[str, ...], **flags: Any) -> None:
    """Continue prompts with the adapter attached to the model it was trained on.

    On a terminal every token stands on the colour of its value of the first knob; elsewhere the text is plain.
    """
    chosen = given(flags)
    adapter, folder = open_saved(adapter_or_run)
    config = make_config(settings_of(adapter, folder, tuple(name for name in FIELDS if name not in chosen)) | chosen)
    if not texts and config.model != TESTBED:
        raise ConfigError(f"The model {config.model!r} needs something to continue. Give --prompt 'TEXT', once or several times.")
    model, tokenizer = load_model(config.model, config)
    check_base(adapter.base, describe_model(model), strict="model" not in chosen)
    prompts = make_prompts([text.replace("\\n", "\n") for text in texts] or _examples(), tokenizer)
    check_lengths(prompts, config.max_new_tokens, context_length(model))
    check_vocabulary(model, prompts)
    policy = adapter.policy(config.pick)
    policy.head.to(input_device(model))
    rollouts = roll_out(
        model, tokenizer, prompts, policy, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, seed=config.seed
    )
    _show(Console(highlight=False, soft_wrap=True), adapter, tokenizer, prompts, rollouts)


def _examples() -> Sequence[Any]:
    from latentknobs import testbed

    return testbed.prompts("mixture", "eval", 3)


def _show(console: Console, adapter: KnobAdapter, tokenizer: Any, prompts: Sequence[Prompt], rollouts: list[Rollout]) -> None:
    """A dim prompt, its coloured response, an empty line; and the legend at the end."""
    space = adapter.space
    scale = Scale.of(space.names[0], space.options)
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        pieces, special = token_texts(tokenizer, rollout.ids)
        seen = [t for t, is_special in enumerate(special) if not is_special]
        values = [space.options[rollout.options[t]][scale.knob] for t in seen]
        console.print(Text.assemble((prompt.text, "dim"), coloured([pieces[t] for t in seen], values, scale)), end="\n\n")
    if console.is_terminal:
        console.print(legend(scale))
