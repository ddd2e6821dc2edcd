"""The suite of rewards: what the score cache, the pairs and the evaluation rely on, tried on a few completions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import cycle, islice
from typing import Any

from latentknobs.conformance.suite import CannotTry, Suite, Violation, by_name, require
from latentknobs.entry_points import with_example
from latentknobs.errors import ConfigError
from latentknobs.rewards.calling import DATA, arguments_of, call, copies
from latentknobs.rewards.python_file import names_file
from latentknobs.rewards.returned import Answer, Failed, check_answer, listed
from latentknobs.rewards.spec import Part, RewardFunction, resolve_rewards

COMPLETIONS = (
    " The answer is 72.",
    "So it goes, and so it ends",
    " Once there was a cat. So the cat ran.",
    "12 + 30 = 42",
    " no no no no",
)
ODD = ("", " ", "\n\n", "...", "\u00e9\U0001f642\u2028\u4f60\u597d", "\x00\t", "{}[]()\\$", "word " * 200)
TOLERANCE = 1e-4  # models round in other ways in batches of other sizes


@dataclass(frozen=True)
class Subject:
    """A reward on rows that it can judge."""

    part: Part
    values: Mapping[str, Sequence[Any]]  # one value for each row, of `DATA` and the columns

    def rows(self, numbers: Sequence[int]) -> Subject:
        """The same on some of the rows, in this order."""
        return replace(self, values={name: [column[n] for n in numbers] for name, column in self.values.items()})

    def returned(self) -> Any:
        """What the reward returns for copies of the rows."""
        arguments = arguments_of(self.part.function, list(self.values), self.part.name)
        return call(self.part.function, arguments, copies(arguments, self.values))

    def items(self) -> list[Any]:
        """The same as a list of one value for each row."""
        return listed(self.returned(), len(self.values["completions"]), self.part.name)

    def answers(self) -> list[Answer]:
        """The same as numbers, or why there is none."""
        return list(map(check_answer, self.items()))


def find(reward: str | RewardFunction, columns: Mapping[str, Any] | str | None = None) -> Subject:
    """A reward on test rows; ConfigError if it is not a reward, or `columns` are not columns.

    Args:
        columns: what prompts must have, as a dict or a JSON object: a value each, or a list that is dealt out to the rows. By
            default the reward's own `example_columns`.
    """
    named = with_example("reward", reward) if isinstance(reward, str) and not names_file(reward) else reward
    part = resolve_rewards([named]).parts[0]
    try:
        found = (
            json.loads(columns) if isinstance(columns, str) else dict(columns or getattr(part.function, "example_columns", {}))
        )
    except ValueError:
        found = None
    if not isinstance(found, dict) or any(value == [] for value in found.values()) or found.keys() & set(DATA):
        raise ConfigError(f'columns={columns!r} are not columns: write a JSON object such as {{"answer": [72, 42]}}.')
    dealt = {name: list(islice(cycle(v if isinstance(v, list) else [v]), len(COMPLETIONS))) for name, v in found.items()}
    ids = [list(text.encode()) for text in COMPLETIONS]
    prompts = [f"Question {n}: " for n in range(len(COMPLETIONS))]
    values: dict[str, Any] = {"prompts": prompts, "completions": list(COMPLETIONS), "completion_ids": ids, **dealt}
    return Subject(part, values)


def _where_it_works(check: Callable[[Subject, list[Answer]], None]) -> Callable[[Subject], None]:
    """A check that receives the answers, and is not tried where the first checks fail."""

    @wraps(check)
    def checked(subject: Subject) -> None:
        try:
            answers = subject.answers()
        except Exception as error:
            raise CannotTry from error
        check(subject, answers)

    return checked


def can_be_called(subject: Subject) -> None:
    """It takes what it is called with, and raises nothing on ordinary completions."""
    try:
        subject.returned()
    except Exception as error:
        require(False, f"called with {', '.join(subject.values)} it raises {type(error).__name__}: {error}")


def gives_one_answer_for_each(subject: Subject) -> None:
    """It returns as many values as there are completions, in a list or something else that has an order."""
    try:
        returned = subject.returned()
    except Exception as error:
        raise CannotTry from error
    try:
        listed(returned, len(COMPLETIONS), subject.part.name)
    except Exception as error:
        require(False, str(error))


@_where_it_works
def answers_with_numbers(subject: Subject, answers: list[Answer]) -> None:
    """Each value is a finite number, None (not applicable), or `Failed`."""
    wrong = list(filter(None, map(_fault, subject.items())))
    require(not wrong, f"{len(wrong)} of {len(answers)} values cannot be used. {wrong[0] if wrong else ''}")


@_where_it_works
def keeps_the_order(subject: Subject, answers: list[Answer]) -> None:
    """Completions in another order get the same values in that order."""
    _require_repeatable(subject, answers)
    turned = subject.rows(range(len(answers))[::-1]).answers()[::-1]
    require(_same(turned, answers), f"in reverse order they score {_shown(turned)} instead of {_shown(answers)}")


@_where_it_works
def accepts_a_single_completion(subject: Subject, answers: list[Answer]) -> None:
    """A batch of one works."""
    try:
        subject.rows([0]).answers()
    except Exception as error:
        require(False, f"a batch of one ends with {type(error).__name__}: {error}")


@_where_it_works
def accepts_extra_columns(subject: Subject, answers: list[Answer]) -> None:
    """A column that it does not know changes nothing."""
    more = replace(subject, values={**subject.values, "another_column": list(range(len(answers)))})
    try:
        found = more.answers()
    except Exception as error:
        raise Violation(f"with a column that it does not know it raises {type(error).__name__}: {error}") from None
    _require_repeatable(subject, answers)
    require(_same(found, answers), f"with a column that it does not know they score {_shown(found)} instead of {_shown(answers)}")


@_where_it_works
def survives_odd_texts(subject: Subject, answers: list[Answer]) -> None:
    """Empty, blank, foreign and long completions get an answer too."""
    if any(map(_fault, subject.items())):
        raise CannotTry
    for text in ODD:
        values = {**subject.values, "completions": [text, *subject.values["completions"][1:]]}
        try:
            fault = _fault(replace(subject, values=values).items()[0])
        except Exception as error:
            fault = f"It raises {type(error).__name__}: {error}"
        require(fault is None, f"for the completion {text[:20]!r}: {fault}")


@_where_it_works
def does_not_change_inputs(subject: Subject, answers: list[Answer]) -> None:
    """Prompts, completions and columns are after the call what they were before."""
    arguments = arguments_of(subject.part.function, list(subject.values), subject.part.name)
    inputs = copies(arguments, subject.values)
    listed(call(subject.part.function, arguments, inputs), len(answers), subject.part.name)
    changed = [name for name in inputs if name in subject.values and repr(inputs[name]) != repr(list(subject.values[name]))]
    require(not changed, f"it changes {', '.join(changed)}; work on a copy")


def version_can_be_used(subject: Subject) -> None:
    """An attribute `version` is a text or a number."""
    version = getattr(subject.part.function, "version", None)
    is_usable = version is None or isinstance(version, str | int | float)
    require(is_usable, f"its version {version!r} is a {type(version).__name__}, which is ignored; use a text or a number")


@_where_it_works
def is_repeatable(subject: Subject, answers: list[Answer]) -> None:
    """Where its scores are kept, because it is named or has a version, a second call says the same."""
    again = subject.answers()
    is_same = subject.part.identity is None or _same(again, answers)
    require(is_same, f"it says {_shown(answers)} and then {_shown(again)}; fix its seed, or leave out `version`")


@_where_it_works
def judges_each_alone(subject: Subject, answers: list[Answer]) -> None:
    """Where its scores are kept, they do not depend on the other completions of the call."""
    if subject.part.identity is None:
        return
    _require_repeatable(subject, answers)
    try:
        alone = [subject.rows([n]).answers()[0] for n in range(len(answers))]
    except Exception as error:
        raise CannotTry from error
    require(_same(alone, answers), f"alone they score {_shown(alone)}, together {_shown(answers)}; leave out `version`")


def _fault(item: Any) -> str | None:
    """What is wrong with a value; a reward that says itself why it failed does what it should."""
    return None if isinstance(item, Failed) else check_answer(item).error


def _require_repeatable(subject: Subject, answers: list[Answer]) -> None:
    if not _same(answers, subject.answers()):
        raise CannotTry


def _same(some: Sequence[Answer], others: Sequence[Answer]) -> bool:
    return all(_close(*both) for both in zip(some, others, strict=True))


def _close(one: Answer, other: Answer) -> bool:
    if one.value is None or other.value is None:
        return one == other
    return math.isclose(one.value, other.value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _shown(answers: Sequence[Answer]) -> str:
    return f"[{', '.join('None' if answer.value is None else f'{answer.value:.4g}' for answer in answers)}]"


CHECKS = by_name(
    can_be_called, gives_one_answer_for_each, answers_with_numbers, keeps_the_order, accepts_a_single_completion,
    accepts_extra_columns, survives_odd_texts, does_not_change_inputs, version_can_be_used, is_repeatable,
    judges_each_alone,
)  # fmt: skip
SUITE = Suite("reward", CHECKS, find, name=lambda subject: subject.part.name, show=lambda subject: subject.part.name)
