"""What a function's code says of itself: a constant part that can be hashed, the names it reads, and what it imports."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import Any

from latentknobs.rewards.modules import absolute, named


def inner(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions and classes inside."""
    yield code
    for value in code.co_consts:
        if type(value) is CodeType:
            yield from inner(value)


def code_parts(code: CodeType) -> tuple[Any, ...]:
    """All that decides what the code does, as plain values; where it stands in its file does not."""
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return names, counts, code.co_code, getattr(code, "co_exceptiontable", b"")


def global_chains(code: CodeType) -> set[tuple[str, ...]]:
    """Global names that the code reads, each with the attributes it takes from it at once: `helpers.LIMIT`."""
    chains: set[tuple[str, ...]] = set()
    for part in inner(code):
        chain: tuple[str, ...] = ()
        for step in dis.get_instructions(part):
            if step.opname in ("EXTENDED_ARG", "PUSH_NULL"):
                continue
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                chain = (step.argval,)
            elif chain and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                chain = (*chain, step.argval)
            else:
                chain = ()
            if chain:
                chains.add(chain)
    return {chain for chain in chains if not any(other[: len(chain)] == chain != other for other in chains)}


def imported(code: CodeType, package: str) -> set[str]:
    """Full names of the modules that the code imports while it runs."""
    found: set[str] = set()
    for part in inner(code):
        steps = [step for step in dis.get_instructions(part) if step.opname != "EXTENDED_ARG"]
        for level, wanted, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME" and isinstance(level.argval, int):
                base = absolute(step.argval or None, level.argval, package)
                found.update(named(base, wanted.argval or ()))
    return found - {""}
