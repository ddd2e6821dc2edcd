"""Rollouts: sampled responses with the options they were sampled with, and their scores."""

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from latentknobs.data.prompts import Prompt
from latentknobs.decoding import Attached
from latentknobs.decoding.record import split_sequences
from latentknobs.errors import RewardError, RunError
from latentknobs.policies import Policy
from latentknobs.rewards import check_rewards

Reward = Callable[..., Sequence[float]]


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    Attributes:
        prompt: index into the list of prompts.
        ids: (T) response tokens, the end-of-sequence token included if it came.
        options: (T) index of the option that each token was sampled with.
        text: the response as text, without special tokens.
    """

    prompt: int
    ids: tuple[int, ...]
    options: tuple[int, ...]
    text: str


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
        seed: fixes all options and tokens, together with `batch_size`.
        advance: called with the number of responses just finished.
    """
    rows = sorted((p for p in range(len(prompts)) for _ in range(copies)), key=lambda p: (len(prompts[p].ids), p))
    device = next(model.parameters()).device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    made: list[Rollout] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        longest = max(len(prompts[p].ids) for p in batch)
        ids = [[pad] * (longest - len(prompts[p].ids)) + list(prompts[p].ids) for p in batch]
        mask = [[0] * (longest - len(prompts[p].ids)) + [1] * len(prompts[p].ids) for p in batch]
        with torch.random.fork_rng(devices=[]), Attached(model, policy, seed=seed * 1_000_003 + start) as attached:
            torch.manual_seed(seed * 1_000_003 + start)
            sequences = model.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
            )
            option_BT = attached.option_BT
        _, responses = split_sequences(model, sequences, longest)
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        for b, p in enumerate(batch):
            options = tuple(option_BT[b, : len(responses[b])].tolist())
            made.append(Rollout(p, tuple(responses[b]), options, texts[b]))
        advance(len(batch))
    return sorted(made, key=lambda rollout: rollout.prompt)


def score(reward: Reward, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], batch: int = 1024) -> list[float]:
    """The reward of every rollout, through TRL's signature `reward(prompts, completions, **columns)`.

    Raises:
        RewardError: a wrong number of values, or values that are not finite numbers.
    """
    names = sorted({name for prompt in prompts for name in prompt.columns})
    values: list[float] = []
    for start in range(0, len(rollouts), batch):
        part = rollouts[start : start + batch]
        asked = [prompts[r.prompt] for r in part]
        columns = {name: [prompt.columns.get(name) for prompt in asked] for name in names}
        _check_call(reward, columns)
        got = reward([prompt.text for prompt in asked], [r.text for r in part], **columns)
        values += check_rewards(got, len(part), getattr(reward, "__name__", type(reward).__name__))
    return values


def _check_call(reward: Reward, columns: dict[str, Any]) -> None:
    try:
        inspect.signature(reward).bind([], [], **columns)
    except TypeError as error:
        raise RewardError(
            f"The reward {getattr(reward, '__name__', reward)!r} cannot be called as reward(prompts, completions, "
            f"{', '.join(columns) or '**columns'}): {error}. End its signature with **columns."
        ) from None
    except ValueError:  # a callable without a signature, e.g. of C: let the call speak for itself
        return


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Dataclasses or plain objects as JSON lines, complete or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row if isinstance(row, dict) else asdict(row)) + "\n")
    partial.replace(path)


def read_rollouts(path: Path) -> list[Rollout]:
    """What `write_lines` wrote of rollouts.

    Raises:
        RunError: a damaged line.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Rollout(r["prompt"], tuple(r["ids"]), tuple(r["options"]), r["text"]) for r in rows]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise RunError(f"{str(path)!r} is damaged ({error}). Delete it; the stage will be run again.") from None
