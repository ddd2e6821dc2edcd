"""The head's held-out responses cut into token texts, saved in the run directory: all that the heat map needs.

Written once, while the tokenizer is loaded; the report can then be written at any time without tokenizer or model.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout, read_lines
from latentknobs.errors import RunError
from latentknobs.files import MB, read_json
from latentknobs.knobs.space import KnobSpace

FILE = "evaluation/samples.json"
RESPONSES = "evaluation/rollouts/learned_head-*.jsonl"
PER_TASK = 6
NEAR = 8  # tokens before a response that may change its text
STEPS = 8  # values of a knob by which values from no grid are shown
LARGEST = 256 * MB


@dataclass(frozen=True)
class Sample:
    """One response of the head, token by token."""

    prompt: int  # index of the held-out prompt
    task: str
    text: str  # the prompt
    pieces: tuple[str, ...]  # text of each token; together they are the response
    special: tuple[bool, ...]  # whether each token is a special one (end of sequence)
    options: tuple[int, ...]  # index of the option of each token


@dataclass(frozen=True)
class Samples:
    """Responses to show, and what their option indices mean: `options[k]` is `{knob: value}`, `labels[k]` its words."""

    knobs: tuple[str, ...]
    options: list[dict[str, float]]
    labels: list[str]
    shown: list[Sample]

    def __post_init__(self) -> None:
        if not self.knobs or len(self.options) != len(self.labels) or any({*o} != {*self.knobs} for o in self.options):
            raise ValueError("each option must have a label and a value for each knob")
        for sample in self.shown:
            if not len(sample.pieces) == len(sample.special) == len(sample.options):
                raise ValueError(f"the tokens of prompt {sample.prompt} do not match their options")
            if not all(0 <= k < len(self.options) for k in sample.options):
                raise ValueError(f"an option of prompt {sample.prompt} does not exist")


def write_samples(run: Path, space: KnobSpace, prompts: Sequence[Prompt], tasks: Sequence[str], tokenizer: Any) -> None:
    """Saves the head's first answer to the first prompts of each task: the first ones, so that none is picked.

    Args:
        prompts, tasks: the held-out prompts, in the order of the evaluation.
    """
    taken: Counter[str] = Counter()
    shown, found = [], head_responses(run)
    has_options = all(rollout.options is not None for rollout in found)
    options = space.options if has_options else seen_options(space.names, found)
    labels = [space.label(k) for k in range(space.K)] if has_options else [_about(option) for option in options]
    first_seed = {rollout.prompt: with_options(rollout, options) for rollout in reversed(found)}
    for rollout in sorted(first_seed.values(), key=lambda rollout: rollout.prompt):
        task = tasks[rollout.prompt]
        taken[task] += 1
        if taken[task] <= PER_TASK:
            pieces, special = token_texts(tokenizer, rollout.ids)
            shown.append(Sample(rollout.prompt, task, prompts[rollout.prompt].text, pieces, special, rollout.options or ()))
    samples = Samples(space.names, options, labels, shown)
    (run / FILE).write_text(json.dumps(asdict(samples)) + "\n", encoding="utf-8")


def seen_options(names: Sequence[str], rollouts: Sequence[Rollout]) -> list[dict[str, float]]:
    """In place of a grid, for values that come from none: all combinations, as far as tokens come near them, of a few values of
    each knob, evenly spaced from the lowest to the highest that was chosen.
    """
    value_NJ = np.array([value for rollout in rollouts for value in rollout.values])
    low_J, high_J = value_NJ.min(0), value_NJ.max(0)
    step_NJ = np.rint((value_NJ - low_J) / np.where(high_J > low_J, high_J - low_J, 1) * (STEPS - 1))
    near_NJ = low_J + np.unique(step_NJ, axis=0) * (high_J - low_J) / (STEPS - 1)
    unique = dict.fromkeys(tuple(float(f"{value:.3g}") for value in row) for row in near_NJ)
    return [dict(zip(names, row, strict=True)) for row in unique]


def with_options(rollout: Rollout, options: Sequence[dict[str, float]]) -> Rollout:
    """A response of values that come from no grid, with the nearest option of each token; any other as it is."""
    if rollout.options is not None:
        return rollout
    option_KJ = np.array([list(option.values()) for option in options])
    width_J = np.maximum(np.ptp(option_KJ, axis=0), 1e-12)
    gap_TK = np.abs((np.array(rollout.values)[:, None] - option_KJ) / width_J).sum(-1)
    return replace(rollout, options=tuple(gap_TK.argmin(-1).tolist()))


def _about(option: dict[str, float]) -> str:
    return "about " + ", ".join(f"{name} {value:g}" for name, value in option.items())


def head_responses(run: Path) -> list[Rollout]:
    """The head's held-out responses, by prompt and then by seed."""
    found = [rollout for path in sorted(run.glob(RESPONSES)) for rollout in read_lines(path, Rollout)]
    return sorted(found, key=lambda rollout: rollout.prompt)


def read_samples(run: Path) -> Samples:
    """What `write_samples` wrote; RunError if it is missing or damaged."""
    cure = "Run `latentknobs train` again with the same settings; finished stages are reused."
    samples: Samples = read_json(run / FILE, Samples, RunError, cure, LARGEST)
    return samples


def token_texts(tokenizer: Any, ids: Sequence[int], after: Sequence[int] = ()) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """The text that each token adds to those before it, and whether it is special (then its name).

    Tokens are decoded in context, since a single token may be half a character or lose its space; half a character adds
    nothing until it is whole.

    Args:
        after: the tokens of the prompt, where the response is shown right behind it: its first token may begin with a space.
    """
    specials = set(tokenizer.all_special_ids)
    plain = [token for token in after if token not in specials][-NEAR:]
    pieces, before = [], tokenizer.decode(plain, clean_up_tokenization_spaces=False)
    for token in ids:
        if token in specials:
            pieces.append(str(tokenizer.convert_ids_to_tokens(token)))
            continue
        plain.append(token)
        text = tokenizer.decode(plain, clean_up_tokenization_spaces=False)
        text = before if text.endswith("\ufffd") else text
        pieces.append(text[len(before) :])
        before = text
    return tuple(pieces), tuple(token in specials for token in ids)
