"""Prompts: how rows become tokens, and how held-out ones are kept apart.

A row is TRL's: a `prompt` column (text, or a list of chat messages); every other column reaches the reward. A conversation
goes through the tokenizer's chat template, with the settings in the column `chat_template_kwargs` if there is one. Where it
ends in an assistant message, that message is the beginning of the answer, and the model goes on with it. The split into
training and held-out prompts is a hash of the text, so it never depends on order or seed. Files are read in `tables.py`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from latentknobs.errors import DataError

Row = Mapping[str, Any]
Messages = tuple[dict[str, Any], ...]
RESERVED = ("prompts", "completions")  # the reward's own arguments
TEMPLATE_SETTINGS = "chat_template_kwargs"  # TRL's name for the column


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: what the model reads, after the chat template if there was one.
        ids: its tokens.
        columns: the other columns of its row, for the reward.
        messages: the conversation it was made from, None for plain text.
    """

    text: str
    ids: tuple[int, ...]
    columns: dict[str, Any] = field(default_factory=dict)
    messages: Messages | None = None


def make_prompts(rows: Iterable[Row | str], tokenizer: Any) -> list[Prompt]:
    """Tokenised prompts; a list of chat messages goes through the tokenizer's chat template.

    Raises:
        DataError: a prompt has no tokens or is neither text nor messages, a column clashes with the reward's arguments, or the
            tokenizer has no chat template, or one that refuses the conversation.
    """
    return [make_prompt(row, tokenizer, f"Prompt {number}") for number, row in enumerate(rows, 1)]


def make_prompt(row: Row | str, tokenizer: Any, called: str) -> Prompt:
    """One of `make_prompts`; `called` is its name in messages."""
    if not isinstance(row, str | Mapping):
        raise DataError(f"{called} is {row!r}; a row must be text, or a dict with a `prompt`.")
    columns: dict[str, Any] = {"prompt": row} if isinstance(row, str) else dict(row)
    named = ", ".join(map(str, columns))
    prompt = columns.pop("prompt", None)
    if bad := [name for name in columns if not isinstance(name, str) or name in RESERVED]:
        raise DataError(f"{called} has a column {bad[0]!r}, which the reward could not receive. Rename it.")
    messages = None
    if isinstance(prompt, str):
        text, ids = prompt, tokenizer(prompt)["input_ids"]
    elif isinstance(prompt, list | tuple):
        messages = check_messages(prompt, called)
        text = render_chat(tokenizer, messages, called, settings=columns.get(TEMPLATE_SETTINGS))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        raise DataError(f"{called} is {prompt!r} (columns: {named}); `prompt` must be text or a list of chat messages.")
    if not ids:
        raise DataError(f"{called} is empty: {text!r}. Give at least one token to start from.")
    return Prompt(text, tuple(ids), columns, messages)


def check_messages(value: Sequence[Any], called: str) -> Messages:
    """The messages of a conversation, without the empty fields that table formats add.

    Raises:
        DataError: there is none, or one is no dict with `role` and `content`.
    """
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            form = '{"role": "user", "content": "..."}'
            raise DataError(f"{called} holds {message!r}, which is no chat message. Write each as {form}.")
    if not value:
        raise DataError(f"{called} is a conversation without messages. Give at least one.")
    return tuple({k: v for k, v in message.items() if v is not None or k == "content"} for message in value)


def render_chat(
    tokenizer: Any, messages: Sequence[Row], called: str, *, settings: Row | None = None, is_complete: bool = False
) -> str:
    """A conversation as the text that the model reads.

    Args:
        settings: passed to the chat template, e.g. `{"enable_thinking": False}`.
        is_complete: the last message is a finished answer; otherwise the text ends where the assistant is to go on.

    Raises:
        DataError: the tokenizer has no chat template, or it refuses the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"{called} is a conversation, but this tokenizer has no chat template. Give plain text.")
    if settings is not None and not isinstance(settings, Mapping):
        raise DataError(f"{called} has {TEMPLATE_SETTINGS}={settings!r}; it must be a dict of the template's settings.")
    goes_on = messages[-1]["role"] == "assistant" and not is_complete
    if goes_on and not (isinstance(messages[-1]["content"], str) and messages[-1]["content"]):
        raise DataError(f"{called} ends in an assistant message without text. Leave it out, or begin the answer in it.")
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=not (goes_on or is_complete), continue_final_message=goes_on,
            **given,
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{called} does not fit the tokenizer's chat template: {error} Its roles are: {roles}. Change the messages, or "
            f"the column {TEMPLATE_SETTINGS}."
        ) from error
    return text


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
