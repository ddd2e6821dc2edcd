"""How a reward is called: by keyword as in TRL, on inputs that it may change, and awaited where it is asynchronous.

TRL passes `prompts`, `completions`, `completion_ids` and every column. A reward whose signature does not end in `**columns`
receives what it names. What TRL's trainers add (`trainer_state`, `log_extra`, `log_metric`) is passed where it is named: a
fresh state, because nothing here trains the language model, and functions that log nothing.
"""

import asyncio
import copy
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import cache
from inspect import Parameter
from typing import Any, NamedTuple

from latentknobs.errors import BrokenRewardError

DATA = ("prompts", "completions", "completion_ids")
TRAINER = ("trainer_state", "log_extra", "log_metric")


class Arguments(NamedTuple):
    """The names of what a reward is called with."""

    by_position: tuple[str, ...] = ()
    by_name: tuple[str, ...] = ()


def arguments_of(function: Callable[..., Any], offered: Collection[str], name: str) -> Arguments:
    """Which of the offered names (`DATA` and columns) a reward receives; BrokenRewardError if it requires another."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a callable of C without a signature
        return Arguments(by_name=tuple(offered))
    kinds = {parameter.kind for parameter in parameters}
    if kinds == {Parameter.VAR_POSITIONAL}:
        return Arguments(("prompts", "completions"))
    fixed = [p for p in parameters if p.kind is Parameter.POSITIONAL_ONLY]
    if len(fixed) == 2 and not {p.name for p in fixed} & {*offered}:  # only the order assigns the arguments
        fixed = [p.replace(name=data) for p, data in zip(fixed, DATA, strict=False)]
    while fixed and fixed[-1].name not in offered and fixed[-1].default is not Parameter.empty:
        fixed.pop()
    named = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    known = {*offered, *TRAINER}
    missing = [p.name for p in [*fixed, *named] if p.name not in known and (p in fixed or p.default is Parameter.empty)]
    if missing:
        raise BrokenRewardError(
            f"The reward {name!r} requires {', '.join(map(repr, missing))}, and is called with {', '.join(offered)}. Add such a "
            "column to the prompts; in a reward of your own, correct the name or give the parameter a default."
        )
    rest = [n for n in offered if n not in {p.name for p in fixed}] if Parameter.VAR_KEYWORD in kinds else []
    return Arguments(tuple(p.name for p in fixed), tuple(dict.fromkeys([*rest, *(p.name for p in named if p.name in known)])))


def call(function: Callable[..., Any], arguments: Arguments, inputs: Mapping[str, Any]) -> Any:
    """What a reward returns for its inputs, awaited if need be."""
    answer = function(*(inputs[n] for n in arguments.by_position), **{n: inputs[n] for n in arguments.by_name})
    return _awaited(answer) if inspect.isawaitable(answer) else answer


def copies(arguments: Arguments, values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Inputs that a reward may change: row by row, so that rows which share a value do not see each other either."""
    names = (*arguments.by_position, *arguments.by_name)
    return {name: list(map(_copied, values[name])) if name in values else _trainer(name) for name in names}


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # a lock or a client cannot be copied, and is passed as it is
        return value


def _trainer(name: str) -> Any:
    if name == "trainer_state":
        from transformers import TrainerState

        return TrainerState()
    return lambda *values, **settings: None


def _awaited(answer: Awaitable[Any]) -> Any:
    outcome = asyncio.run_coroutine_threadsafe(_outcome(answer), _loop(os.getpid()))
    try:
        value, error = outcome.result()
    except BaseException:  # an interrupt of the caller ends the reward too
        outcome.cancel()
        raise
    if error is not None:
        raise RuntimeError("it was cancelled") if isinstance(error, asyncio.CancelledError) else error
    return value


async def _outcome(answer: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Value or exception: a SystemExit must reach the caller, and not end the thread of the loop."""
    try:
        return await answer, None
    except BaseException as error:
        return None, error


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """One event loop of each process, in a thread: a notebook's own loop is running, and clients keep their connections."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="latentknobs-rewards").start()
    return loop
