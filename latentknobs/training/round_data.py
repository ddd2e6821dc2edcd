"""A finished round, read from its files alone: prompts, rollouts, scores and pairs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.errors import RunError
from latentknobs.learners.lpo.pairs import Pair
from latentknobs.training.sampling import read_all, read_scores


@dataclass(frozen=True)
class RoundData:
    """What a round made.

    Attributes:
        rollouts: responses, whose `prompt` indexes `prompts`.
        scores: of each rollout; None where the reward failed, or for pairs from elsewhere.
        pairs: of indices into `rollouts`.
    """

    prompts: list[Prompt]
    rollouts: list[Rollout]
    scores: list[float | None]
    pairs: list[Pair]


def prompt_lines(prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """Prompts as rows of JSON; columns that JSON does not know are told as text."""
    for prompt in prompts:
        yield json.loads(json.dumps(asdict(prompt), default=str))


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of indices into the rollouts."""
    return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def load_round(run: Path, number: int | None = None) -> RoundData:
    """A round of a run; None is the last that has pairs.

    Raises:
        RunError: there is no such round, or a file of it is damaged.
    """
    found = sorted(int(path.parent.name[6:]) for path in run.glob("round-*/pairs.jsonl") if path.parent.name[6:].isdigit())
    if not found or (number is not None and number not in found):
        told = f"rounds with pairs: {', '.join(map(str, found))}" if found else "it has no round with pairs yet"
        asked = "" if number is None else f" {number}"
        raise RunError(f"There is no round{asked} in {str(run)!r} ({told}). Give the output_dir of `latentknobs train`.")
    folder = run / f"round-{number or found[-1]}"
    try:
        rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
        prompts = [_prompt(row) for row in rows]
        rollouts = list(read_all(sorted((folder / "rollouts").glob("*.jsonl"))))
        scores = read_scores(sorted((folder / "scores").glob("*.jsonl"))) or [None] * len(rollouts)
        pairs = read_pairs(folder / "pairs.jsonl")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"A file in {str(folder)!r} is missing or damaged ({error!r}). `latentknobs train --resume` makes it again."
        ) from error
    return RoundData(prompts, rollouts, scores, pairs)


def _prompt(row: dict[str, Any]) -> Prompt:
    messages = row.pop("messages", None)
    return Prompt(row["text"], tuple(row["ids"]), row["columns"], None if messages is None else tuple(messages))
