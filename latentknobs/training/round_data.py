"""A finished round, read from its files alone: prompts, rollouts, scores and examples."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentknobs.data.examples import Example, Pair
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout, read_lines
from latentknobs.errors import RunError
from latentknobs.training.sampling import read_all, read_scores


@dataclass(frozen=True)
class RoundData:
    """The files of a round."""

    prompts: list[Prompt]
    rollouts: list[Rollout]  # responses, whose `prompt` indexes `prompts`
    scores: list[float | None]  # of each rollout; None where the reward failed, or for responses from elsewhere
    examples: list[Example]  # what was learned from, as indices into `rollouts`

    @property
    def pairs(self) -> list[Pair]:
        """The examples as preference pairs; RunError if they are not pairs."""
        if any(len(example.responses) != 2 for example in self.examples):
            raise RunError("The learner of this run learns from single responses, so there are no pairs. Choose a run of lpo.")
        return [Pair.of(example) for example in self.examples]


def prompt_lines(prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """Prompts as rows of JSON; columns that JSON does not know become text."""
    for prompt in prompts:
        columns = {name: _as_json(value) for name, value in prompt.columns.items()}
        yield vars(prompt) | {"columns": columns, "messages": _as_json(prompt.messages)}


def _as_json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=str))
    except (TypeError, ValueError, RecursionError):  # keys that are not texts, and what contains itself
        return str(value)


def load_round(run: Path, number: int | None = None) -> RoundData:
    """A round of a run, None being the last that has examples; RunError if there is none, or a file of it is damaged."""
    found = sorted(int(path.parent.name[6:]) for path in run.glob("round-*/examples.jsonl") if path.parent.name[6:].isdigit())
    if not found or (number is not None and number not in found):
        known = f"finished rounds: {', '.join(map(str, found))}" if found else "no round is finished yet"
        wanted = "" if number is None else f" {number}"
        raise RunError(f"There is no round{wanted} in {str(run)!r} ({known}). Give the output_dir of `latentknobs train`.")
    folder = run / f"round-{number or found[-1]}"
    rollouts = list(read_all(sorted((folder / "rollouts").glob("*.jsonl"))))
    scores = read_scores(sorted((folder / "scores").glob("*.jsonl"))) or [None] * len(rollouts)
    return RoundData(
        read_lines(folder / "prompts.jsonl", Prompt), rollouts, scores, read_lines(folder / "examples.jsonl", Example)
    )
