"""Prompts: where they come from, how they become tokens, and how held-out ones are kept apart.

A prompts file is JSONL in TRL's format: a `prompt` column (text, or a list of chat messages); every other column reaches
the reward. The split into training and held-out prompts is a hash of the text, so it never depends on order or seed.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentknobs.errors import DataError

Row = Mapping[str, Any]
RESERVED = ("prompts", "completions")  # the reward's own arguments


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: what the model reads, after the chat template if there was one.
        ids: its tokens.
        columns: the other columns of its row, for the reward.
    """

    text: str
    ids: tuple[int, ...]
    columns: dict[str, Any] = field(default_factory=dict)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a prompts file.

    Raises:
        DataError: the file is missing or empty, or a line is not a JSON object with a `prompt` (naming the line).
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON text may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The prompts file {str(path)!r} cannot be read: {error}. Give the path of a JSONL file.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"Line {number} of {str(path)!r} is not JSON ({error.msg}): {line[:80]!r}. Every line must be one JSON object."
            ) from None
        if not isinstance(row, dict) or "prompt" not in row:
            raise DataError(
                f"Line {number} of {str(path)!r} has no `prompt`: {line[:80]!r}. Write it as "
                '{"prompt": "...", ...}; other columns reach the reward.'
            )
        rows.append(row)
    if not rows:
        raise DataError(f"The prompts file {str(path)!r} is empty. Every line must be one JSON object with a `prompt`.")
    return rows


def make_prompts(rows: Iterable[Row | str], tokenizer: Any) -> list[Prompt]:
    """Tokenised prompts; a list of chat messages goes through the tokenizer's chat template.

    Raises:
        DataError: a prompt has no tokens or is neither text nor messages, a column clashes with the reward's arguments, or the
            tokenizer has no chat template.
    """
    made = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str | Mapping):
            raise DataError(f"Prompt {number} is {row!r}; a row must be text, or a dict with a `prompt`.")
        columns: dict[str, Any] = {"prompt": row} if isinstance(row, str) else dict(row)
        prompt = columns.pop("prompt", None)
        if bad := [name for name in columns if not isinstance(name, str) or name in RESERVED]:
            raise DataError(f"Prompt {number} has a column {bad[0]!r}, which the reward could not receive. Rename it.")
        if isinstance(prompt, list):
            if not getattr(tokenizer, "chat_template", None):
                raise DataError(f"Prompt {number} is a conversation, but this tokenizer has no chat template. Give plain text.")
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        elif isinstance(prompt, str):
            text, ids = prompt, tokenizer(prompt)["input_ids"]
        else:
            raise DataError(f"Prompt {number} is {prompt!r}; it must be text or a list of chat messages.")
        if not ids:
            raise DataError(f"Prompt {number} is empty: {text!r}. Give at least one token to start from.")
        made.append(Prompt(text, tuple(ids), columns))
    return made


def check_lengths(prompts: Sequence[Prompt], max_new_tokens: int, context: int | None) -> None:
    """Refuses prompts that leave no room for the response.

    Raises:
        DataError: naming the first such prompt and the numbers.
    """
    for number, prompt in enumerate(prompts, 1):
        if context is not None and len(prompt.ids) + max_new_tokens > context:
            raise DataError(
                f"Prompt {number} has {len(prompt.ids)} tokens and the response may have {max_new_tokens}, but the model's "
                f"context holds {context}: {prompt.text[:80]!r}. Shorten the prompt or lower max_new_tokens."
            )


def is_held_out(text: str, share: float = 0.2) -> bool:
    """Whether a prompt belongs to the held-out split: a hash of its text, nothing else."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < share * 2**64


def split_prompts(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held-out) prompts; equal texts always fall on the same side."""
    held_out = [prompt for prompt in prompts if is_held_out(prompt.text)]
    return [prompt for prompt in prompts if not is_held_out(prompt.text)], held_out


def check_disjoint(train: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    """Refuses evaluation prompts that are also training prompts.

    Raises:
        DataError: naming the first.
    """
    seen = {prompt.text for prompt in train}
    for prompt in evaluation:
        if prompt.text in seen:
            raise DataError(
                f"The held-out prompt {prompt.text[:80]!r} is also a training prompt. Remove it from one of the two files; "
                "a gain measured on training prompts means nothing."
            )
