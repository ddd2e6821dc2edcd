"""Word problems of the testbed, read back: harder ones with larger amounts, and a reward for inventing one and solving it.

The verbs are those of `latentknobs.testbed.math_problems`.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.paper.novelty import novelty
from latentknobs.testbed.words import BOYS, GIRLS

SIGNS = dict.fromkeys(("finds", "buys", "gets", "makes", "picks", "wins", "takes"), 1)
SIGNS |= dict.fromkeys(("gives", "loses", "sells", "breaks", "throws", "drops", "leaves"), -1)
ANSWER = "\nAnswer:"
_STEP = re.compile(rf"\b({'|'.join(SIGNS)})\b[^.\d]*(\d+)")
_WORK = re.compile(r"(\d+)([+-])(\d+)=(-?\d+)\.")
_CONCLUSION = re.compile(r"So (-?\d+)\.")


@dataclass(frozen=True)
class Problem:
    """What a problem's text says: a start and signed amounts."""

    start: int
    amounts: tuple[int, ...]

    @property
    def answer(self) -> int:
        return self.start + sum(self.amounts)


def read_problem(text: str) -> Problem | None:
    """The start and the two signed amounts of a problem; None where the text does not state exactly these."""
    steps = _STEP.findall(text)
    numbers = re.findall(r"\d+", text)
    if len(steps) != 2 or len(numbers) != 3 or [amount for _, amount in steps] != numbers[1:] or "?" not in text:
        return None
    return Problem(int(numbers[0]), tuple(SIGNS[verb] * int(amount) for verb, amount in steps))


def is_solved(problem: Problem, work: str) -> bool:
    """Whether the working does the steps of the problem in their order, without a mistake, and concludes what it found."""
    steps, conclusion = _WORK.findall(work), _CONCLUSION.search(work)
    total = problem.start
    if len(steps) != len(problem.amounts) or conclusion is None:
        return False
    for (left, sign, right, result), amount in zip(steps, problem.amounts, strict=True):
        if int(left) != total or int(sign + right) != amount or int(result) != total + amount:
            return False
        total += amount
    return int(conclusion[1]) == total


def harder(row: dict[str, Any], largest: int = 12, highest: int = 60) -> dict[str, Any] | None:
    """The same problem with amounts of 2 to `largest` (the LM has seen 2 to 9); None where no such total stays in range."""
    problem = read_problem(str(row["prompt"]))
    if problem is None:
        return None
    rng = random.Random(str(row["prompt"]))
    for _ in range(20):
        amounts = [rng.randint(2, largest) * (1 if amount > 0 else -1) for amount in problem.amounts]
        if all(1 <= total <= highest for total in (problem.start + amounts[0], problem.start + sum(amounts))):
            template = re.sub(r"\d+", "{}", str(row["prompt"]))  # problems hold no braces
            text = template.format(problem.start, *map(abs, amounts))
            return row | {"prompt": text, "answer": str(problem.start + sum(amounts))}
    return None


def openings(n: int) -> list[dict[str, Any]]:
    """Up to `n` beginnings of a problem to be invented: a name and how many things there are."""
    verbs = ("has", "had", "starts with", "owns")
    texts = [f"Problem: {name} {verb} {start}" for name in (*GIRLS, *BOYS) for verb in verbs for start in range(3, 41)]
    random.Random(0).shuffle(texts)
    return [{"prompt": text, "task": "invent"} for text in texts[:n]]


class InventAndSolve:
    """Half for a problem unlike the others invented from the same beginning, half for solving it: hot, then cold.

    New: the novelty of the invented problem among those of the same prompt in one call, 0 unless it can be read as a problem.
    Solved: 1 or 0, checked against the invented text.
    """

    def __init__(self, part: str = "both") -> None:
        self.part = part
        self.__name__ = f"invent_and_solve({part})"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        invented = [completion.partition(ANSWER)[0] for completion in completions]
        problems = [read_problem(prompt.removeprefix("Problem:") + text) for prompt, text in zip(prompts, invented, strict=True)]
        new = [value * (t is not None) for value, t in zip(novelty(prompts, invented), problems, strict=True)]
        works = [completion.partition(ANSWER)[2] for completion in completions]
        solved = [float(t is not None and is_solved(t, work)) for t, work in zip(problems, works, strict=True)]
        both = [(a + b) / 2 for a, b in zip(new, solved, strict=True)]
        return {"both": both, "new": new, "solved": solved}[self.part]
