"""Rows of TRL's preference format: what forms they come in, and how pairs of a run are written as such rows.

Plain text: `{"prompt": "...", "chosen": "...", "rejected": "..."}`. Conversations: the same with lists of messages, or without
`prompt`, where both conversations begin with it. Texts without a comparison are
`{"prompt": ..., "completion": ...}`. See the page "Dataset formats and types" of TRL's documentation.
"""

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentknobs.data.examples import Pair
from latentknobs.data.prompts import Prompt, check_messages, check_text
from latentknobs.data.rollouts import Rollout, write_lines
from latentknobs.errors import DataError

SIDES, COMPLETION = ("chosen", "rejected"), "completion"
# Columns that do not belong to the prompt. The names of the ids are those that TRL gives them itself.
OWN = (*SIDES, COMPLETION, "score_chosen", "score_rejected", "prompt_ids", "chosen_ids", "rejected_ids")
Answer = str | Mapping[str, Any]
"""A plain response, or the one message that answers a conversation."""


class Unusable(Exception):
    """A row of the format without a usable pair; its text is the reason, to follow `because`."""


def read_row(row: Any, called: str) -> tuple[Any, Answer, Answer]:
    """Prompt, chosen and rejected of one row: three texts, or messages and one answering message each; twice the same for a
    row without a comparison.

    Raises:
        DataError: the row has no form that can be read without guessing, or half a character.
        Unusable: the completions are the same, or not one text of the assistant.
    """
    if is_completion(row):
        row = row | dict.fromkeys(SIDES, row[COMPLETION])
    if not isinstance(row, Mapping) or any(row.get(side) is None for side in SIDES):
        raise DataError(f"{called} is {reprlib.repr(row)}. It needs `prompt`, `chosen` and `rejected`.")
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(prompt, str):
        return prompt, check_text(chosen, called), check_text(rejected, called)
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        raise DataError(
            f"{called} has no `prompt`, and where it ends in the texts of `chosen` and `rejected` would be a guess. "
            "Write it into a column of its own, e.g. with extract_prompt of TRL."
        )
    if isinstance(chosen, list | tuple) and isinstance(rejected, list | tuple):
        chosen, rejected = check_messages(chosen, called), check_messages(rejected, called)
        if isinstance(prompt, list | tuple):
            return prompt, _answer(chosen), _answer(rejected)
        if chosen == rejected:
            raise Unusable("chosen and rejected are the same")
        same = next((n for n, (c, r) in enumerate(zip(chosen, rejected, strict=False)) if c != r), len(chosen))
        shared = chosen[:same]
        if shared and (prompt is None or prompt in [message.get("content") for message in shared]):
            return shared, _answer(chosen[same:]), _answer(rejected[same:])
    raise DataError(
        f"{called} has no known form: `prompt` is {reprlib.repr(prompt)}, `chosen` is {reprlib.repr(row['chosen'])}. Give three "
        "texts, or a list of messages for each, or no prompt and two conversations that begin alike."
    )


def is_completion(row: Any) -> bool:
    """Whether a row is a prompt and a completion, without a comparison (TRL's "prompt-completion")."""
    return isinstance(row, dict) and row.get(COMPLETION) is not None and not any(side in row for side in SIDES)


def _answer(messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if len(messages) != 1 or messages[0]["role"] != "assistant" or not messages[0].get("content"):
        raise Unusable("a completion is not one text of the assistant")
    return messages[0]


def answered(prompt: Prompt, answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The whole conversation; where the prompt ends in the beginning of an answer, the answer goes on with it."""
    assert prompt.messages is not None
    *before, last = prompt.messages
    if last["role"] != "assistant":
        return [*prompt.messages, answer]
    return [*before, {**answer, "content": last["content"] + answer["content"]}]


def preference_rows(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], pairs: Sequence[Pair], scores: Sequence[float | None]
) -> Iterator[dict[str, Any]]:
    """One row of TRL's preference format for each pair: texts or messages, scores, token ids, and the prompt's other columns.

    The token ids hold what text alone does not: where a response was cut, and how it was split into tokens. Where a prompt ends
    in the beginning of an answer, TRL's format cannot say so: the beginning is moved into both answers, and there are no ids.
    DataError if a column holds what JSON cannot.
    """
    for pair in pairs:
        prompt = prompts[pair.prompt]
        sides = dict(zip(SIDES, (pair.chosen, pair.rejected), strict=True))
        row: dict[str, Any] = {"prompt": prompt.text}
        row |= {side: rollouts[n].text for side, n in sides.items()}
        ids = {"prompt_ids": list(prompt.ids)} | {f"{side}_ids": list(rollouts[n].ids) for side, n in sides.items()}
        if prompt.messages is not None:
            answers = {side: answered(prompt, {"role": "assistant", "content": row[side]}) for side in SIDES}
            row = {"prompt": answers["chosen"][:-1]} | {side: answers[side][-1:] for side in SIDES}
            ids = ids if len(row["prompt"]) == len(prompt.messages) else {}
        row |= {f"score_{side}": scores[n] for side, n in sides.items()}
        yield row | ids | {name: _jsonable(value, name) for name, value in prompt.columns.items() if name not in row | ids}


def write_preferences(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes rows as JSON lines, complete or not at all; DataError if the file cannot be written."""
    try:
        write_lines(path, rows)
    except OSError as error:
        raise DataError(f"The preferences cannot be written to {str(path)!r}: {error.strerror}. Choose another file.") from None


def _jsonable(value: Any, name: str) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"The column {name!r} of a prompt cannot be written as JSON: {error}. Leave it out.") from None
    return value
