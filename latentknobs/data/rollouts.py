"""Rollouts: sampled responses with the knob values they were sampled with."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from latentknobs.data.disk import replacing
from latentknobs.data.evidence import check_evidence, second_prompts
from latentknobs.data.prompts import Prompt
from latentknobs.engines.base import Engine, engine_of
from latentknobs.errors import RunError
from latentknobs.files import MB, fit, parse_json, read_text
from latentknobs.policies import Policy, reads

LARGEST = 1024 * MB  # of a file of rollouts
T = TypeVar("T")
NOTHING: Mapping[int, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    Attributes:
        prompt: index into the list of prompts.
        ids: (T) response tokens, the end-of-sequence token included if it came.
        options: (T) index of the option that each token was sampled with; None where the policy does not choose among options.
        text: the response as text, without special tokens.
        values: (T, J) knob values that each token was sampled with, in the order of the policy's space; empty where unknown.
        logps: (T) log-probabilities (nats) of the tokens as the engine reported them (`Engine.logps`); None where it did not.
    """

    prompt: int
    ids: tuple[int, ...]
    options: tuple[int, ...] | None
    text: str
    values: tuple[tuple[float, ...], ...] = ()
    logps: tuple[float, ...] | None = None


def plan_batches(prompts: Sequence[Prompt], copies: int, batch_size: int) -> list[list[int]]:
    """Which prompts are answered together: indices of prompts, `copies` times each, those of similar length side by side."""
    rows = sorted((p for p in range(len(prompts)) for _ in range(copies)), key=lambda p: (len(prompts[p].ids), p))
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def roll_out_batch(
    engine: Engine, prompts: Sequence[Prompt], rows: Sequence[int], policy: Policy, *, max_new_tokens: int, seed: int,
    samples: int = 1, known: Mapping[int, Rollout] = NOTHING, keep: Callable[[int, Rollout], None] | None = None,
) -> list[Rollout]:  # fmt: skip
    """One response to each of the prompts `rows` (indices), generated together; `seed` fixes all values and tokens.

    Args:
        samples: see `Engine.sample`.
        known: responses that an earlier call finished, by their place in `rows`; `keep` gets each other one when it is finished.
    """
    found = dict(known)
    if len(found) < len(rows):
        ids = [prompts[p].ids for p in rows]
        stream = engine.stream(
            ids, policy, max_new_tokens=max_new_tokens, seed=seed, samples=samples, skip=found.keys(),
            second_prompts=second_prompts([prompts[p] for p in rows], reads(policy)),
        )  # fmt: skip
        for place, (tokens, values, options, text, logps) in stream:
            found[place] = Rollout(rows[place], tokens, options, text, values, logps)
            if keep is not None:
                keep(place, found[place])
    return [found[place] for place in range(len(rows))]


def roll_out(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    policy: Policy,
    *,
    copies: int = 1,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    samples: int | None = None,
    engine: str | Engine = "transformers",
) -> list[Rollout]:
    """`copies` responses to each prompt, in the order of the prompts.

    Args:
        seed: fixes all values and tokens, together with `batch_size`.
        samples: how many responses are sampled together, for policies that read it; None: `copies`.
        engine: runs the policy on the model, or the name of such an engine.
    """
    check_evidence(prompts, reads(policy))
    runner = engine if isinstance(engine, Engine) else engine_of(engine, model, tokenizer)
    runner.check(policy)
    found: list[Rollout] = []
    for number, rows in enumerate(plan_batches(prompts, copies, batch_size)):
        found += roll_out_batch(
            runner, prompts, rows, policy, max_new_tokens=max_new_tokens, seed=batch_seed(seed, number, batch_size),
            samples=samples or copies,
        )  # fmt: skip
    return sorted(found, key=lambda rollout: rollout.prompt)


def batch_seed(seed: int, number: int, batch_size: int) -> int:
    """The seed of one of the batches of `plan_batches`."""
    return seed * 1_000_003 + number * batch_size


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Dataclasses or plain objects as JSON lines, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row if isinstance(row, dict) else asdict(row)) + "\n")


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """What `write_lines` wrote of a dataclass; RunError if the file is missing or a line is damaged."""
    cure = "Delete it, and the command that made it makes it again with --resume."
    try:
        rows = [parse_json(line) for line in read_text(path, RunError, cure, LARGEST).splitlines()]
        found: list[T] = fit(rows, list[kind])  # type: ignore[valid-type]
    except ValueError as error:
        raise RunError(f"{str(path)!r} is damaged: {error}. {cure}") from None
    return found
