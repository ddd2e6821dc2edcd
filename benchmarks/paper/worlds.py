"""A world: a model, its prompts in three disjoint parts, and the data they come from.

Parts are fixed by a hash of a prompt's group (its template, where it names one) or else of its text: a fifth is `held_out` and
only judged on; of the rest, a fifth is `dev`, where everything is chosen (constants, the parameters of every rule, our own
settings), and heads are trained on what remains.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from benchmarks.paper.problems import harder, openings
from latentknobs import testbed
from latentknobs.config import make_config
from latentknobs.data.prompts import Prompt, check_disjoint, is_held_out, make_prompts
from latentknobs.data.tables import read_rows
from latentknobs.errors import DataError
from latentknobs.models.loading import freeze, load_model

DEV, PARTS = 0.2, ("train", "dev", "held_out")
MARGIN = 1.3  # prompts drawn per prompt needed, before the hash deals them out
SHORTEST = 200  # characters of a text worth a prefix


class MissingData(Exception):
    """The folder of real data, or a part of it, is not here; experiments that need it are skipped, and say so."""


@dataclass(frozen=True)
class World:
    """See the module. `name` is written MODEL:PROMPTS."""

    name: str
    model: Any
    tokenizer: Any
    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    held_out: list[dict[str, Any]]

    def prompts(self, part: str) -> list[Prompt]:
        """The tokenised prompts of `train`, `dev` or `held_out`."""
        return make_prompts(getattr(self, part), self.tokenizer)


def part_of(text: str) -> str:
    """Where the prompts of a group, or a prompt without one, belong."""
    if is_held_out(text):
        return "held_out"
    return "dev" if is_held_out(f"dev {text}", DEV) else "train"


def load_world(name: str, sizes: dict[str, int], prefix_tokens: int = 50) -> World:
    """The world MODEL:PROMPTS.

    Args:
        name: the model is `testbed`, `stories260k`, or any folder or hub id; the prompts are a testbed task (several joined by
            +), `hard`, `invent`, `tinystories`, `wikitext-2`, a JSONL file or `dataset:NAME`.
        sizes: how many prompts of each part; fewer if there are not so many.

    Raises:
        MissingData: it needs the folder of real data, which is absent.
    """
    model_name, _, source = name.rpartition(":")
    model, tokenizer = _model(model_name)
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    seen: set[str] = set()
    for row in rows(source, sizes, tokenizer, prefix_tokens):
        text = str(row["prompt"])
        part = part_of(str(row.get("group", text)))
        if text not in seen and len(parts[part]) < sizes[part]:
            seen.add(text)
            parts[part].append(row)
    if empty := [part for part in PARTS if sizes[part] and not parts[part]]:
        raise DataError(f"The prompts of {name!r} leave none for {empty[0]}. Give more prompts.")
    world = World(name, model, tokenizer, **parts)
    for ours, theirs in (("train", "held_out"), ("dev", "held_out"), ("train", "dev")):
        check_disjoint(world.prompts(ours), world.prompts(theirs))
    return world


def rows(source: str, sizes: dict[str, int], tokenizer: Any, prefix_tokens: int) -> Iterator[dict[str, Any]]:
    """Prompts of a source, enough of them for each part."""
    shares = {"held_out": 0.2, "dev": 0.8 * DEV, "train": 0.8 * (1 - DEV)}
    need = int(MARGIN * max(sizes[part] / shares[part] for part in PARTS)) + 50
    if source == "invent":
        yield from openings(need)
    elif source == "hard":
        yield from filter(None, map(harder, _testbed_rows("math", int(need * MARGIN))))
    elif source in ("tinystories", "wikitext-2"):
        yield from _prefixes(source, tokenizer, prefix_tokens)
    elif all(task in testbed.TASKS for task in source.split("+")):
        streams = [_testbed_rows(task, need) for task in source.split("+")]
        yield from (row for row in chain.from_iterable(zip_longest(*streams)) if row)
    else:
        yield from read_rows(source)


def _testbed_rows(task: str, need: int) -> list[dict[str, Any]]:
    """Both splits of the testbed: its hash is ours, so that its eval prompts are our held-out ones."""
    evaluation = testbed.prompts(task, "eval", need // 5 + 10)
    return [*testbed.prompts(task, "train", need), *evaluation]


def data_folder() -> Path:
    """The folder of real data.

    Raises:
        MissingData: it is not here.
    """
    folder = Path(os.environ.get("LATENTKNOBS_DATA", "data"))
    if not folder.exists():
        raise MissingData(f"There is no folder {str(folder)!r}. Set LATENTKNOBS_DATA to the folder of real data.")
    return folder


def _prefixes(source: str, tokenizer: Any, tokens: int) -> Iterator[dict[str, Any]]:
    """The first tokens of each story, or of each paragraph of WikiText-2 with its tokenisation marks undone."""
    file = {"tinystories": "tinystories_sample.txt", "wikitext-2": "valid.txt"}[source]
    text = (data_folder() / source / file).read_text(encoding="utf-8")
    if source == "wikitext-2":
        for mark, plain in {" @-@ ": "-", " @,@ ": ",", " @.@ ": ".", " <unk>": "", " ,": ",", " .": ".", " 's": "'s"}.items():
            text = text.replace(mark, plain)
        texts = [line.strip() for line in text.splitlines() if not line.startswith(" =")]
    else:
        texts = [story.strip() for story in text.split("<|endoftext|>")]
    for text in texts:
        ids = tokenizer(text)["input_ids"][: tokens + 1]  # the first is BOS
        if len(text) > SHORTEST and len(ids) > tokens:
            yield {"prompt": tokenizer.decode(ids, skip_special_tokens=True), "task": source}


def _model(name: str) -> tuple[Any, Any]:
    if name != "stories260k":
        return load_model(name, make_config({}))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = data_folder() / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = 1  # stories end with BOS, as in its training
    return freeze(model), tokenizer
