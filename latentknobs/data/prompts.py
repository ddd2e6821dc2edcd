"""Prompts: how rows become tokens, and how held-out ones are kept apart.

A row is TRL's: a `prompt` column (text, or a list of chat messages); every other column reaches the reward. A conversation
goes through the tokenizer's chat template, with the settings in the column `chat_template_kwargs` if there is one. Where it
ends in an assistant message, that message is the beginning of the answer, and the model goes on with it. The split into
training and held-out prompts is a hash of the text, or of the column `group`: it never depends on order or seed. Files are
read in `tables.py`.
"""

import hashlib
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentknobs.data.evidence import WITHOUT, check_boundary, split_evidence
from latentknobs.errors import DataError

Row = Mapping[str, Any]
Messages = tuple[dict[str, Any], ...]
RESERVED = ("prompts", "completions")  # the reward's own arguments
GROUP = "group"  # the column that names what the split keeps together
TEMPLATE_SETTINGS = "chat_template_kwargs"  # TRL's name for the column


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: what the model reads, after the chat template if there was one.
        ids: its tokens.
        columns: the other columns of its row, for the reward.
        messages: the conversation behind the text, None for plain text.
        second_ids: tokens of the prompt without its evidence (see `evidence`), None where it names none.
    """

    text: str
    ids: tuple[int, ...]
    columns: dict[str, Any] = field(default_factory=dict)
    messages: Messages | None = None
    second_ids: tuple[int, ...] | None = None


def make_prompts(rows: Iterable[Row | str], tokenizer: Any) -> list[Prompt]:
    """Tokenised prompts; a list of chat messages goes through the tokenizer's chat template.

    Raises:
        DataError: a prompt has no tokens, is neither text nor messages, or holds half a character; a column clashes with the
            reward's arguments; or the tokenizer has no chat template, or one that refuses the conversation.
    """
    return [make_prompt(row, tokenizer, f"Prompt {number}") for number, row in enumerate(rows, 1)]


def make_prompt(row: Row | str, tokenizer: Any, called: str) -> Prompt:
    """One of `make_prompts`; `called` is its name in messages."""
    if not isinstance(row, str | Mapping):
        raise DataError(f"{called} is {reprlib.repr(row)}; a row must be text, or a dict with a `prompt`.")
    columns: dict[str, Any] = {"prompt": row} if isinstance(row, str) else dict(row)
    named = ", ".join(map(str, columns))
    prompt = columns.pop("prompt", None)
    if bad := [name for name in columns if not isinstance(name, str) or name in RESERVED]:
        raise DataError(f"{called} has a column {bad[0]!r}, which the reward could not receive. Rename it.")
    for name, value in columns.items():
        if isinstance(value, str):
            check_text(value, f"The column {name!r:.40} of {called[:1].lower()}{called[1:]}")
    if not isinstance(prompt, str | list | tuple):
        shown = reprlib.repr(prompt)
        raise DataError(f"{called} is {shown} (columns: {named:.200}); `prompt` must be text or a list of chat messages.")
    prompt, without = split_evidence(prompt, columns.get(WITHOUT), called)
    text, ids, messages = _read(prompt, tokenizer, called, columns.get(TEMPLATE_SETTINGS))
    if without is None:
        return Prompt(text, ids, columns, messages)
    _, second_ids, _ = _read(without, tokenizer, f"{called} without its evidence", columns.get(TEMPLATE_SETTINGS))
    check_boundary(ids, second_ids, tokenizer, called)
    return Prompt(text, ids, columns, messages, second_ids)


def _read(prompt: Any, tokenizer: Any, called: str, settings: Any) -> tuple[str, tuple[int, ...], Messages | None]:
    """Text, tokens and messages of a prompt."""
    messages = None
    if isinstance(prompt, str):
        text, ids = prompt, plain_ids(tokenizer, check_text(prompt, called))
    elif isinstance(prompt, list | tuple):
        messages = check_messages(prompt, called)
        text = render_chat(tokenizer, messages, called, settings=settings)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        raise DataError(f"{called} is {reprlib.repr(prompt)}; it must be text or a list of chat messages, as the prompt is.")
    if not ids:
        raise DataError(f"{called} is empty: {text!r:.80}. Give at least one token to start from.")
    return text, tuple(ids), messages


def check_text(text: str, called: str) -> str:
    """The text itself; DataError if it holds half a character, which no tokenizer can read and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{called} holds half a character: {text[error.start]!r} behind {text[max(0, error.start - 20) : error.start]!r}. It "
            "was cut inside of an emoji, or read in another encoding. Read it again, or drop what is broken with "
            "text.encode(errors='ignore').decode()."
        ) from None
    return text


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that is to be continued: without the end that some tokenizers put behind every text."""
    ids = list(tokenizer(text)["input_ids"])
    named = [getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "sep")]
    ends = {token for token in named if token is not None}
    if len(ids) > 1 and ids[-1] in ends:
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        for _ in range(_trailing(ids, ends) - _trailing(bare, ends)):  # an end that is in the text itself stays
            ids.pop()
    return ids


def _trailing(ids: Sequence[int], ends: Collection[int]) -> int:
    return next((n for n, token in enumerate(reversed(ids)) if token not in ends), len(ids))


def check_messages(value: Sequence[Any], called: str) -> Messages:
    """The messages of a conversation, without the empty fields that table formats add; a list of text parts becomes one text.

    DataError if there is none, or one is not a dict with `role` and text. A message that calls a tool needs no content.
    """
    if not value:
        raise DataError(f"{called} is a conversation without messages. Give at least one.")
    return tuple(_message(message, called) for message in value)


def _message(message: Any, called: str) -> dict[str, Any]:
    form = 'Write each as {"role": "user", "content": "..."}'
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(f"{called} holds {reprlib.repr(message)}, which is not a chat message. {form}.")
    content = message.get("content")
    calls = message.get("tool_calls") or message.get("function_call")
    if isinstance(content, list | tuple):
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if bad := [part for part, text in zip(content, texts, strict=True) if not isinstance(text, str)]:
            raise DataError(f"{called} holds a message with the part {reprlib.repr(bad[0])}; only text can be read. {form}.")
        content = "".join(map(str, texts))
    if not isinstance(content, str) and not (content is None and calls):
        what = f"a message of {message['role']!r:.40} with content {reprlib.repr(content)}"
        raise DataError(f"{called} holds {what}, which is not text; only a message with tool_calls may be without. {form}.")
    kept = {name: field for name, field in message.items() if field is not None or name == "content"}
    return kept | ({"content": content} if "content" in message else {})


def render_chat(
    tokenizer: Any, messages: Sequence[Row], called: str, *, settings: Row | None = None, is_complete: bool = False
) -> str:
    """A conversation as the text that the model reads; DataError if the tokenizer has no chat template, or it refuses.

    Args:
        settings: passed to the chat template, e.g. `{"enable_thinking": False}`.
        is_complete: the last message is a finished answer; otherwise the text ends where the assistant is to go on.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(f"{called} is a conversation, but this tokenizer has no chat template. Give plain text.")
    if settings is not None and not isinstance(settings, Mapping):
        raise DataError(f"{called} has {TEMPLATE_SETTINGS}={settings!r:.80}; it must be a dict of the template's settings.")
    goes_on = messages[-1]["role"] == "assistant" and not is_complete
    if goes_on and not messages[-1].get("content"):
        raise DataError(f"{called} ends in an assistant message without text. Leave it out, or begin the answer in it.")
    chosen = {key: value for key, value in (settings or {}).items() if value is not None}
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=not (goes_on or is_complete), continue_final_message=goes_on,
            **chosen,
        )  # fmt: skip
    except Exception as error:  # a template is code of its own
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"{called} does not fit the tokenizer's chat template: {error!s:.200} Its roles are: {roles:.200}. Change the "
            f"messages, or the column {TEMPLATE_SETTINGS}."
        ) from error
    return check_text(text, called)


def check_lengths(prompts: Sequence[Prompt], max_new_tokens: int, context: int | None) -> None:
    """Refuses prompts that leave no room for the response: a DataError names the first one and the numbers."""
    for number, prompt in enumerate(prompts, 1):
        longest = max(len(prompt.ids), len(prompt.second_ids or ()))
        if context is not None and longest + max_new_tokens > context:
            without = " without its evidence" if longest > len(prompt.ids) else ""
            raise DataError(
                f"Prompt {number}{without} has {longest} tokens and the response may have {max_new_tokens}, but the model's "
                f"context holds {context}: {prompt.text[:80]!r}. Shorten the prompt or lower max_new_tokens."
            )


def group_of(prompt: Prompt) -> str:
    """What the split keeps together: the column `group` (a template, a document, an author), or the prompt by itself."""
    group = prompt.columns.get(GROUP)
    return prompt.text if group is None else str(group)


def is_held_out(text: str, share: float = 0.2) -> bool:
    """Whether a prompt or group of this text belongs to the held-out split: a hash, nothing else."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < share * 2**64


def split_prompts(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held-out) prompts; equal texts and whole groups always fall on the same side."""
    held_out = [prompt for prompt in prompts if is_held_out(group_of(prompt))]
    return [prompt for prompt in prompts if not is_held_out(group_of(prompt))], held_out


def check_disjoint(train: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    """Refuses evaluation prompts that are also training prompts, or share their group: a DataError names the first."""
    seen, groups = {prompt.text for prompt in train}, {group_of(prompt) for prompt in train if GROUP in prompt.columns}
    for prompt in evaluation:
        if GROUP in prompt.columns and group_of(prompt) in groups:
            raise DataError(
                f"The held-out prompt {prompt.text[:80]!r} shares its group {group_of(prompt)[:80]!r} with a training prompt. "
                "Move one of the two to the other file, or leave out the column `group`."
            )
        if prompt.text in seen:
            raise DataError(
                f"The held-out prompt {prompt.text[:80]!r} is also a training prompt. Remove it from one of the two files; "
                "a gain measured on training prompts means nothing."
            )
