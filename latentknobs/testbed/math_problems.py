"""Two-step word problems with shown work, from the project's own templates.

A problem is `start (+ or -) first (+ or -) second`, with names and things; the work is two equations and a conclusion:
`12+7=19. 19-5=14. So 14.` All numbers are whole and lie between 0 and `MAX_NUMBER`.
"""

import random
from dataclasses import dataclass

from latentknobs.testbed import words

MAX_NUMBER = 60
MAX_START = 40
MAX_AMOUNT = 9


@dataclass(frozen=True)
class MathProblem:
    """The `text` of a problem and its two steps: `start`, then each `(sign, amount)`."""

    text: str
    start: int
    steps: tuple[tuple[int, int], tuple[int, int]]

    @property
    def answer(self) -> int:
        """After all steps."""
        return self.start + sum(sign * amount for sign, amount in self.steps)

    @property
    def work(self) -> str:
        """The correct shown work."""
        lines, total = [], self.start
        for sign, amount in self.steps:
            result = total + sign * amount
            lines.append(equation(total, sign, amount, result))
            total = result
        return f"{' '.join(lines)} {conclusion(total)}"


def equation(left: int, sign: int, right: int, result: int) -> str:
    """`equation(12, +1, 7, 19)` -> `"12+7=19."`"""
    return f"{left}{'+' if sign > 0 else '-'}{right}={result}."


def conclusion(answer: int) -> str:
    """The sentence that ends a solution."""
    return f"So {answer}."


def math_problem(rng: random.Random) -> MathProblem:
    """One problem drawn with `rng`."""
    girl = rng.random() < 0.5
    name = rng.choice(words.GIRLS if girl else words.BOYS)
    friend = rng.choice([other for other in (*words.GIRLS, *words.BOYS) if other != name])
    pronoun = "She" if girl else "He"
    thing = rng.choice(words.COUNTABLES)
    start, steps = _numbers(rng)
    (first_sign, first), (second_sign, second) = steps
    had = rng.choice(("has", "had", "starts with", "owns"))
    joined = rng.random() < 0.5
    one = _event(rng, first_sign, first, friend)
    two = _event(rng, second_sign, second, friend)
    events = f"{pronoun} {one} and then {two}." if joined else f"{pronoun} {one}. Then {pronoun.lower()} {two}."
    question = rng.choice(
        (f"How many {thing} does {name} have?", f"How many {thing} are left?", f"How many {thing} does {name} have now?")
    )
    return MathProblem(f"{name} {had} {start} {thing}. {events} {question}", start, steps)


def _numbers(rng: random.Random) -> tuple[int, tuple[tuple[int, int], tuple[int, int]]]:
    """A start from 3 and two signed amounts from 2, such that every total stays within 1 and `MAX_NUMBER`."""
    start = rng.randint(3, MAX_START)
    total, steps = start, []
    for _ in range(2):
        signs = [sign for sign in (1, -1) if (total >= 3 if sign < 0 else total <= MAX_NUMBER - 2)]
        sign = rng.choice(signs)
        amount = rng.randint(2, min(MAX_AMOUNT, MAX_NUMBER - total if sign > 0 else total - 1))
        steps.append((sign, amount))
        total += sign * amount
    return start, (steps[0], steps[1])


def _event(rng: random.Random, sign: int, amount: int, friend: str) -> str:
    """What happened to the things, without subject: `"gives 5 to Mia"`."""
    if sign > 0:
        return rng.choice(
            (f"finds {amount} more", f"buys {amount} more", f"gets {amount} from {friend}", f"makes {amount} more",
             f"picks up {amount} more", f"wins {amount} more", f"takes {amount} from {friend}")
        )  # fmt: skip
    return rng.choice(
        (f"gives {amount} to {friend}", f"loses {amount}", f"sells {amount}", f"breaks {amount}", f"throws away {amount}",
         f"drops {amount}", f"leaves {amount} with {friend}")
    )  # fmt: skip
