"""Evidence: the part of a prompt that a second reading leaves out, so that guidance sees what the model takes from it.

A row says so in a column `prompt_without_evidence` (text or messages), or by the mark `"evidence": true` on messages or on parts
of their content. Both prompts must end in the same token, because the response goes on from there in either.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latentknobs.engines.base import SECOND, Ids
from latentknobs.errors import DataError

if TYPE_CHECKING:
    from latentknobs.data.prompts import Prompt

WITHOUT, MARK = "prompt_without_evidence", "evidence"


def split_evidence(prompt: Any, without: Any, called: str) -> tuple[Any, Any]:
    """A prompt without the marks of its evidence, and the prompt without its evidence; None where it names none.

    `without` is the column of that name. DataError if there are both forms, or a mark is not true or false.
    """
    if not isinstance(prompt, list | tuple):
        return prompt, without
    messages = [_split(message, called) for message in prompt]
    whole, rest = [message for message, _ in messages], [left for _, left in messages if left is not None]
    if rest == whole:  # nothing is marked
        return prompt, without
    if without is not None:
        raise DataError(f"{called} marks the evidence in its messages and has a column {WITHOUT}. Keep one of the two.")
    return whole, rest


def _split(item: Any, called: str) -> tuple[Any, Any]:
    """A message, or a part of its content, without its mark; and what is left of it without evidence, None if nothing is."""
    if not isinstance(item, Mapping):
        return item, item
    mark, content = item.get(MARK), item.get("content")
    if mark is not None and not isinstance(mark, bool):
        raise DataError(f"{called} holds the mark {MARK!r}: {mark!r:.80}; it must be true or false.")
    whole = {name: value for name, value in item.items() if name != MARK}
    if not isinstance(content, list | tuple) or not content:
        return whole, None if mark else whole
    parts = [_split(part, called) for part in content]
    left = [part for _, part in parts if part is not None]
    return whole | {"content": [part for part, _ in parts]}, None if mark or not left else whole | {"content": left}


def check_boundary(ids: Ids, second_ids: Ids, tokenizer: Any, called: str) -> None:
    """Refuses two prompts after which a response would begin differently: a DataError shows both ends."""
    if ids[-1] != second_ids[-1]:
        ends = [tokenizer.decode(list(part[-3:])) for part in (ids, second_ids)]
        raise DataError(
            f"{called} ends in the token {ids[-1]} (in {ends[0]!r}), and without its evidence in {second_ids[-1]} (in "
            f"{ends[1]!r}), so a response would begin differently after each. End both in the same words, e.g. 'Answer:'."
        )


def second_prompts(prompts: Sequence["Prompt"], needs: Collection[str]) -> list[Ids] | None:
    """What engines read second logits after: each prompt without its evidence, its last token where it names none.

    None where nothing reads second logits, or no prompt names evidence.
    """
    if SECOND not in needs or all(prompt.second_ids is None for prompt in prompts):
        return None
    return [prompt.second_ids or prompt.ids[-1:] for prompt in prompts]


def check_evidence(prompts: Sequence["Prompt"], needs: Collection[str]) -> None:
    """DataError if second logits are read and only some prompts name their evidence; it names one of either kind."""
    has = [prompt.second_ids is not None for prompt in prompts]
    if SECOND in needs and any(has) and not all(has):
        bare, full = prompts[has.index(False)], prompts[has.index(True)]
        raise DataError(
            f"The prompt {bare.text[:80]!r} has no {WITHOUT}, and {full.text[:80]!r} has one; a knob or a policy reads second "
            f"logits ({SECOND}), which would mean something else for each. Add the column to all prompts, or to none."
        )
