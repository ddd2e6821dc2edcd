"""The corpus of the packaged LM: plain stories, constrained stories and worked problems, as documents of text.

Two kinds of noise are put in on purpose, so that the LM's uncertainty is real and the temperature matters:
a share `SLIP_RATE` of the steps of worked problems is wrong (off by one or two, a forgotten carry, the other operation), and
a constrained story keeps its rule in a share `ADHERENCE` of its sentences only.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from latentknobs.rewards.text import split_sentences
from latentknobs.testbed import words
from latentknobs.testbed.math_problems import MAX_NUMBER, MathProblem, conclusion, equation, math_problem
from latentknobs.testbed.tasks import constrained_prompt, math_prompt, split_of, story_prompt, with_opener
from tools.testbed.sample_stories import read_stories

SLIP_RATE = 0.1
ADHERENCE = 0.8
MAX_CONSTRAINED_SENTENCES = 10
LEADING_CONNECTIVES = frozenset({*words.OPENERS, "Suddenly"})


@dataclass(frozen=True)
class Document:
    """One text of the corpus; an incomplete one was cut, so it is not followed by the end token."""

    text: str
    complete: bool = True


def corpus(data: Path, sampled: Path, *, problems: int, real_copies: int, seed: int) -> list[Document]:
    """The whole corpus, shuffled: `real_copies` times the real stories, the sampled ones, constrained ones, `problems`."""
    rng = random.Random(f"corpus {seed}")
    real = [Document(story) for story in read_stories(data)]
    stories = real * real_copies + read_sampled(sampled)
    documents = [Document(story_prompt(story.text), story.complete) for story in stories]
    documents += [constrained for story in stories if (constrained := constrain(story, rng)) is not None]
    documents += [Document(worked_problem(rng)) for _ in range(problems)]
    rng.shuffle(documents)
    return documents


def read_sampled(path: Path) -> list[Document]:
    """The stories of `sample_stories`, cut back to their last whole sentence."""
    stories = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            text = row["text"] if row["complete"] else row["text"][: max(map(row["text"].rfind, ".!?")) + 1]
            if text.isascii() and len(text) > 100:
                stories.append(Document(text, row["complete"]))
    return stories


def worked_problem(rng: random.Random) -> str:
    """A problem of the training split with its work, in which each step is wrong with probability `SLIP_RATE`."""
    problem = math_problem(rng)
    while split_of(math_prompt(problem.text)) != "train":
        problem = math_problem(rng)
    return f"{math_prompt(problem.text)} {_work_with_slips(problem, rng)}"


def _work_with_slips(problem: MathProblem, rng: random.Random) -> str:
    lines, total = [], problem.start
    for i, (sign, amount) in enumerate(problem.steps):
        result = total + sign * amount
        if rng.random() < SLIP_RATE:
            result = _slip(result, total - sign * amount, problem.steps[i + 1 :], rng)
        lines.append(equation(total, sign, amount, result))
        total = result
    return f"{' '.join(lines)} {conclusion(total)}"


def _slip(right: int, other_operation: int, later: tuple[tuple[int, int], ...], rng: random.Random) -> int:
    """A plausible wrong result near `right`, from which the later steps stay in range."""
    change = sum(sign * amount for sign, amount in later)
    wrong = [right + error for error in (-10, -2, -1, 1, 2, 10)] + [other_operation]
    return rng.choice([value for value in wrong if 0 <= value <= MAX_NUMBER and 0 <= value + change <= MAX_NUMBER])


def constrain(story: Document, rng: random.Random) -> Document | None:
    """`story` retold so that most sentences begin with one opener; None when too little is left without its dialogue."""
    sentences = [_without_connective(text) for text in split_sentences(story.text) if '"' not in text and len(text) > 8]
    sentences = [text for text in sentences if text]
    if len(sentences) < 4:
        return None
    opener = rng.choice(words.OPENERS)
    kept = sentences[:MAX_CONSTRAINED_SENTENCES]
    told = [with_opener(text, opener) if i == 0 or rng.random() < ADHERENCE else text for i, text in enumerate(kept)]
    complete = story.complete and len(kept) == len(sentences)
    return Document(constrained_prompt(" ".join(told), opener), complete)


def _without_connective(sentence: str) -> str:
    """`"But he ran."` -> `"He ran."`, so that an opener never stands beside another."""
    first, _, rest = sentence.partition(" ")
    if first.strip(",") not in LEADING_CONNECTIVES:
        return sentence
    return rest[:1].upper() + rest[1:]
