"""stories260K and openings of TinyStories, for several benchmarks; and whether adapting would pay there.

    python -m benchmarks.stories260k headroom       # rare but well-spelled words: what `latentknobs headroom` says

The folder with the model and the text is taken from LATENTKNOBS_DATA (default data, see `make data`).
"""

import os
import sys
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import latentknobs as lk
from latentknobs.data.prompts import is_held_out
from latentknobs.rewards import Lexicon, WordSurprise

HELD_OUT = 0.23  # of 2,317 stories: 1,705 different openings to train, 545 to judge
PROMPT_TOKENS = 24


def data_folder() -> Path:
    """The folder of real data; ends the program, saying so, when it is absent."""
    folder = Path(os.environ.get("LATENTKNOBS_DATA", "data"))
    if not (folder / "stories260K").exists():
        sys.exit(f"Skipped: there is no stories260K in {folder}. Set LATENTKNOBS_DATA to the folder of real data.")
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer. Stories end with BOS (id 1), as in its training."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "stories260K", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder / "stories260K")
    model.generation_config.eos_token_id = 1
    return model, tokenizer


def stories(folder: Path) -> list[str]:
    """The TinyStories sample."""
    text = (folder / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8")
    return [story.strip() for story in text.split("<|endoftext|>") if len(story) > 200]


def openings(texts: list[str], tokenizer: Any) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out prompts: the first tokens of each story, split by a hash of the prompt."""
    made = dict.fromkeys(
        tokenizer.decode(tokenizer(text)["input_ids"][: PROMPT_TOKENS + 1], skip_special_tokens=True) for text in texts
    )
    train = [{"prompt": text} for text in made if not is_held_out(text, HELD_OUT)]
    return train, [{"prompt": text} for text in made if is_held_out(text, HELD_OUT)]


def creative_reward(folder: Path) -> WordSurprise:
    """Mean surprisal of well-spelled words, by the TinyStories lexicon, in nats."""
    return WordSurprise(Lexicon.from_text("\n".join(stories(folder))))


@click.group()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Experiments on stories260K."""
    torch.set_num_threads(threads)


@main.command()
def headroom() -> None:
    """Creative but well spelled: `latentknobs headroom` at its default size."""
    folder = data_folder()
    model, tokenizer = load(folder)
    train, held_out = openings(stories(folder), tokenizer)
    found = lk.headroom(
        knobs=["temperature:0,0.2,0.4,0.6,0.8,1,1.2"], model=model, tokenizer=tokenizer, prompts=[*train, *held_out],
        reward=creative_reward(folder), max_new_tokens=80, output_dir="runs/headroom-stories260k",
    )  # fmt: skip
    print(found.verdict)


if __name__ == "__main__":
    main()
