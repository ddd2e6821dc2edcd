"""Rollouts: sampled responses with the knob values they were sampled with."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from latentknobs.data.disk import replacing
from latentknobs.data.prompts import Prompt
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.frozen import input_device, padding_id
from latentknobs.engines.transformers.leaving import sample_leaving
from latentknobs.engines.transformers.record import split_sequences
from latentknobs.errors import RunError
from latentknobs.files import MB, fit, parse_json, read_text
from latentknobs.policies import Policy

LARGEST = 1024 * MB  # of a file of rollouts


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    Attributes:
        prompt: index into the list of prompts.
        ids: (T) response tokens, the end-of-sequence token included if it came.
        options: (T) index of the option that each token was sampled with; None where the policy does not choose among options.
        text: the response as text, without special tokens.
        values: (T, J) knob values that each token was sampled with, in the order of the policy's space; empty where unknown.
    """

    prompt: int
    ids: tuple[int, ...]
    options: tuple[int, ...] | None
    text: str
    values: tuple[tuple[float, ...], ...] = ()


def plan_batches(prompts: Sequence[Prompt], copies: int, batch_size: int) -> list[list[int]]:
    """Which prompts are answered together: indices of prompts, `copies` times each, those of similar length side by side."""
    rows = sorted((p for p in range(len(prompts)) for _ in range(copies)), key=lambda p: (len(prompts[p].ids), p))
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def roll_out_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], rows: Sequence[int], policy: Policy, *, max_new_tokens: int,
    seed: int, samples: int = 1,
) -> list[Rollout]:  # fmt: skip
    """One response to each of the prompts `rows` (indices), generated together; `seed` fixes all values and tokens.

    Rows that have finished leave the batch, where they can (`engines.transformers.leaving`).

    Args:
        samples: how many responses each prompt gets, in this batch and others, for policies that read it.
    """
    pad = padding_id(model, tokenizer)
    device = input_device(model)
    longest = max(len(prompts[p].ids) for p in rows)
    ids = [[pad] * (longest - len(prompts[p].ids)) + list(prompts[p].ids) for p in rows]
    mask = [[0] * (longest - len(prompts[p].ids)) + [1] * len(prompts[p].ids) for p in rows]
    with torch.random.fork_rng(devices=[]), Attached(model, policy, seed=seed) as attached:
        torch.manual_seed(seed)
        attached.samples = samples
        ids_BP, mask_BP = torch.tensor(ids, device=device), torch.tensor(mask, device=device)
        token_BT, value_BTJ, option_BT = sample_leaving(attached, ids_BP, mask_BP, max_new_tokens=max_new_tokens, pad=pad)
    _, responses = split_sequences(model, token_BT, 0)
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    values = [value_BTJ[b, : len(ids)].tolist() for b, ids in enumerate(responses)]
    options = [None if option_BT is None else tuple(option_BT[b, : len(ids)].tolist()) for b, ids in enumerate(responses)]
    return [Rollout(p, tuple(responses[b]), options[b], texts[b], tuple(map(tuple, values[b]))) for b, p in enumerate(rows)]


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
    advance: Callable[[int], None] = lambda rows: None,
) -> list[Rollout]:
    """`copies` responses to each prompt, in the order of the prompts.

    Args:
        seed: fixes all values and tokens, together with `batch_size`.
        advance: called with the number of responses just finished.
    """
    made: list[Rollout] = []
    for number, rows in enumerate(plan_batches(prompts, copies, batch_size)):
        made += roll_out_batch(
            model, tokenizer, prompts, rows, policy, max_new_tokens=max_new_tokens, seed=batch_seed(seed, number, batch_size),
            samples=copies,
        )  # fmt: skip
        advance(len(rows))
    return sorted(made, key=lambda rollout: rollout.prompt)


def batch_seed(seed: int, number: int, batch_size: int) -> int:
    """The seed of one of the batches of `plan_batches`."""
    return seed * 1_000_003 + number * batch_size


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Dataclasses or plain objects as JSON lines, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row if isinstance(row, dict) else asdict(row)) + "\n")


def read_rollouts(path: Path) -> list[Rollout]:
    """What `write_lines` wrote of rollouts.

    Raises:
        RunError: a damaged line.
    """
    cure = "Delete it; the stage will be run again."
    try:
        rows = [parse_json(line) for line in read_text(path, RunError, cure, LARGEST).splitlines()]
        rollouts: list[Rollout] = fit(rows, list[Rollout])
    except ValueError as error:
        raise RunError(f"{str(path)!r} is damaged: {error}. {cure}") from None
    return rollouts
