"""The testbed's prompts: unlimited, deterministic, unique, and split so that train and eval can never share one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

from latentknobs.data.prompts import is_held_out
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

    Each row is `{"prompt", "task", "answer", "opener"}`; `answer` is a string for math, `opener` a word for constrained
    stories, None elsewhere. The same arguments give the same rows everywhere. The split ("train" or "eval") is a hash of the
    prompt's text, so no seed can put one prompt into both. Unknown task or split, or negative `n`: ConfigError.
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


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to: `EVAL_SHARE` of all prompts, by their text, are eval."""
    return "eval" if is_held_out(prompt, EVAL_SHARE) else "train"


def _unique_rows(task: str, split: str, seed: int) -> Iterator[Row]:
    make = {"math": _math_row, "stories": _story_row, "constrained": _constrained_row}[task]
    rng = random.Random(f"{task} {seed}")
    seen: set[str] = set()
    while True:
        row = make(rng)
        if row["prompt"] not in seen and split_of(row["prompt"]) == split:
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
    return f"Problem: {problem}\nAnswer:"


def story_prompt(story: str) -> str:
    return f"Story: {story}"


def constrained_prompt(story: str, opener: str) -> str:
    return f"Rule: {opener}\nStory: {story}"


def with_opener(sentence: str, opener: str) -> str:
    """Let a sentence begin with `opener`: `("He ran.", "So")` -> `"So, he ran."`; names and "I" keep their capital."""
    first, _, rest = sentence.partition(" ")
    lowered = first if first.strip(",.!?'") in _CAPITALISED or first.startswith("I'") else first[:1].lower() + first[1:]
    return f"{opener}, {lowered} {rest}".rstrip()


_CAPITALISED = frozenset({"I", "Mom", "Dad", "Mommy", "Daddy", *words.GIRLS, *words.BOYS})
