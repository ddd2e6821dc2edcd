"""The testbed's prompts: unlimited, deterministic, unique, and split so that train and eval can never share one."""

import random
import re
from collections.abc import Iterator
from typing import Any, Literal

from latentknobs.data.prompts import GROUP, is_held_out
from latentknobs.errors import ConfigError, did_you_mean
from latentknobs.testbed import words
from latentknobs.testbed.math_problems import math_problem
from latentknobs.testbed.openings import story_opening

Split = Literal["train", "eval"]
Row = dict[str, Any]

SINGLE_TASKS = ("math", "stories", "constrained")
TASKS = (*SINGLE_TASKS, "mixture")
SPLITS = ("train", "eval")
EVAL_SHARE = 0.2

MAX_NEW_TOKENS = 64
"""Recommended length of a response: a whole solution, or six to eight sentences of a story."""


def prompts(task: str, split: str, n: int, seed: int = 0) -> list[Row]:
    """`n` different prompts of `task` ("math", "stories", "constrained" or "mixture": the three in equal parts, shuffled).

    Each row is `{"prompt", "task", "answer", "opener", "group"}`; `answer` is a string for math, `opener` a word for constrained
    stories, None elsewhere; `group` is the prompt's template. The same arguments give the same rows everywhere. The split
    ("train" or "eval") is a hash of text and template, so no seed can put one prompt or template into both. Unknown task or
    split, or negative `n`: ConfigError.
    """
    if task not in TASKS:
        raise ConfigError(f"Unknown testbed task {task!r}. {did_you_mean(task, TASKS)}")
    if split not in SPLITS:
        raise ConfigError(f"Unknown split {split!r} of the testbed task {task!r}. {did_you_mean(split, SPLITS)}")
    if n < 0:
        raise ConfigError(f"The testbed task {task!r} cannot have {n} prompts. Choose 0 or more.")
    if task != "mixture":
        stream = _unique_rows(task, split, seed)
        return [next(stream) for _ in range(n)]
    streams = [_unique_rows(single, split, seed) for single in SINGLE_TASKS]
    rows = [next(streams[i % len(streams)]) for i in range(n)]
    random.Random(f"mixture {seed}").shuffle(rows)
    return rows


def template_of(text: str) -> str:
    """A prompt without the words that its template was filled with: prompts of one template are alike in all but these."""

    def kind(found: re.Match[str]) -> str:
        return "#" if found[0].isdigit() else _KINDS.get(found[0].lower(), found[0])

    return re.sub(r"[A-Za-z']+|\d+", kind, text)


def split_of(prompt: str) -> Split:
    """The split a text belongs to: `EVAL_SHARE` of all texts are eval. A prompt is used where its template's is the same."""
    return "eval" if is_held_out(prompt, EVAL_SHARE) else "train"


def _unique_rows(task: str, split: str, seed: int) -> Iterator[Row]:
    make = {"math": _math_row, "stories": _story_row, "constrained": _constrained_row}[task]
    rng = random.Random(f"{task} {seed}")
    seen: set[str] = set()
    while True:
        row = make(rng)
        row[GROUP] = template_of(row["prompt"])
        if row["prompt"] not in seen and {split_of(row["prompt"]), split_of(row[GROUP])} == {split}:
            seen.add(row["prompt"])
            yield row


def _math_row(rng: random.Random) -> Row:
    problem = math_problem(rng)
    return {"prompt": math_prompt(problem.text), "task": "math", "answer": str(problem.answer), "opener": None}


def _story_row(rng: random.Random) -> Row:
    return {"prompt": story_prompt(story_opening(rng).text), "task": "stories", "answer": None, "opener": None}


def _constrained_row(rng: random.Random) -> Row:
    opener = rng.choice(words.OPENERS)
    sentences = [with_opener(sentence, opener) for sentence in story_opening(rng).sentences]
    prompt = constrained_prompt(" ".join(sentences), opener)
    return {"prompt": prompt, "task": "constrained", "answer": None, "opener": opener}


def math_prompt(problem: str) -> str:
    """Of a word problem."""
    return f"Problem: {problem}\nAnswer:"


def story_prompt(story: str) -> str:
    """Of the beginning of a story."""
    return f"Story: {story}"


def constrained_prompt(story: str, opener: str) -> str:
    """Of a story whose sentences begin with a word."""
    return f"Rule: {opener}\nStory: {story}"


def with_opener(sentence: str, opener: str) -> str:
    """Let a sentence begin with `opener`: `("He ran.", "So")` -> `"So, he ran."`; names and "I" keep their capital."""
    first, _, rest = sentence.partition(" ")
    lowered = first if first.strip(",.!?'") in _CAPITALISED or first.startswith("I'") else first[:1].lower() + first[1:]
    return f"{opener}, {lowered} {rest}".rstrip()


_CAPITALISED = frozenset({"I", "Mom", "Dad", "Mommy", "Daddy", *words.GIRLS, *words.BOYS})


def _kinds() -> dict[str, str]:
    """Words that fill templates, by their kind."""
    names = (*words.GIRLS, *words.BOYS)
    kinds = {"name": names, "pronoun": ("he", "she"), "a": ("a", "an"), "opener": words.OPENERS,
             "who": ("girl", "boy", *words.ANIMALS), "adjective": (*words.ADJECTIVES, *words.OBJECT_ADJECTIVES),
             "place": words.PLACES, "verb": words.VERBS, "thing": (*words.OBJECTS, *words.COUNTABLES)}  # fmt: skip
    return {word.lower(): kind for kind, listed in kinds.items() for entry in listed for word in entry.split()}


_KINDS = _kinds()
