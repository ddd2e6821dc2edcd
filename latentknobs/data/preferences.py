"""Pairs from elsewhere, in TRL's preference format: rows with `prompt`, `chosen` and `rejected`, plain or conversational.

Responses become the tokens that the model would have had to write: a plain one is tokenised behind its prompt and ends with
the end-of-sequence token, as TRL does it; an answer in a conversation is what the chat template adds to the prompt, up to the
end of its turn. Rows that cannot be used (see the reasons of `Unusable`) are counted and left out; no response is cut.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentknobs.data.examples import Pair
from latentknobs.data.prompts import TEMPLATE_SETTINGS, Prompt, make_prompt, render_chat
from latentknobs.data.rollouts import Rollout
from latentknobs.data.tables import read_rows
from latentknobs.data.trl import OWN, SIDES, Answer, Unusable, answered, is_completion, read_row
from latentknobs.errors import NoPairsError

UNKNOWN = -1  # the option of a token that was not sampled here


@dataclass(frozen=True)
class Preferences:
    """Preference pairs that the run did not sample, as rollouts and pairs.

    Attributes:
        prompts: each once.
        rollouts: each response to a prompt once; all of its options are -1, unknown.
        pairs: of indices into `rollouts`; twice the same for a response without a comparison.
        summary: how many there are, how many rows were left out, and why: one sentence.
    """

    prompts: list[Prompt]
    rollouts: list[Rollout]
    pairs: list[Pair]
    summary: str

    @property
    def alone(self) -> int:
        """How many responses are without a comparison."""
        return sum(pair.chosen == pair.rejected for pair in self.pairs)


def read_preferences(
    source: str | Path | Iterable[Any], tokenizer: Any, *, max_new_tokens: int, context: int | None = None,
    stops: Collection[int] = (), held_out: Collection[str] = (),
) -> Preferences:  # fmt: skip
    """Preferences from a file, a dataset or rows (see `read_rows`).

    Args:
        max_new_tokens: longest response, in tokens.
        context: most tokens of prompt and response together.
        stops: ids that end a response, next to the tokenizer's own.
        held_out: texts of prompts that are kept for the evaluation.

    Raises:
        DataError: the source cannot be read, or a row is not of the format (naming it).
        NoPairsError: no row can be used.
    """
    rows = read_rows(source, SIDES, "preferences")
    reader = _Reader(tokenizer, max_new_tokens, context, {*stops, tokenizer.eos_token_id}, held_out)
    dropped: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        try:
            reader.add(row, f"Row {number} of the preferences")
        except Unusable as reason:
            dropped[str(reason)] += 1
    reasons = "; ".join(f"{count} because {reason}" for reason, count in dropped.most_common())
    if not reader.pairs:
        raise NoPairsError(
            f"None of the {len(rows)} preferences can be used: {reasons or 'there are none'}. Give others, or change the "
            "settings that leave them out."
        )
    pairs, prompts = len(reader.pairs), len(reader.prompts)
    what = "response" if all(pair.chosen == pair.rejected for pair in reader.pairs) else "pair"
    left_out = f" {dropped.total()} of {len(rows)} rows are left out: {reasons}." if dropped else ""
    summary = f"{pairs} usable {what}{'s' * (pairs != 1)} of {prompts} prompt{'s' * (prompts != 1)}.{left_out}"
    return Preferences(reader.prompts, reader.rollouts, list(reader.pairs), summary)


def prompt_rows(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """The prompts of preferences with their other columns, each once, as rows for `make_prompts`. Errors: see `read_row`."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, 1):
        try:
            prompt, *_ = read_row(row, f"Row {number} of the preferences")
        except Unusable:
            continue
        found.setdefault(str(prompt), {name: value for name, value in row.items() if name not in OWN} | {"prompt": prompt})
    return list(found.values())


class _Reader:
    """Collects prompts, responses and pairs, each once."""

    def __init__(
        self, tokenizer: Any, max_new_tokens: int, context: int | None, stops: Collection[int], held_out: Collection[str]
    ) -> None:
        self.tokenizer, self.max_new_tokens, self.context = tokenizer, max_new_tokens, context
        self.stops, self.held_out = stops, held_out
        self.prompts: list[Prompt] = []
        self.rollouts: list[Rollout] = []
        self.pairs: dict[Pair, None] = {}
        self._place: dict[tuple[Any, ...], int] = {}

    def add(self, row: Any, called: str) -> None:
        """One row; `Unusable` if it is left out, DataError if it is not of the format."""
        text, *answers = read_row(row, called)
        columns = {name: value for name, value in row.items() if name not in OWN}
        prompt = make_prompt(columns | {"prompt": text}, self.tokenizer, called)
        if prompt.text in self.held_out:
            raise Unusable("their prompt is kept for the evaluation")
        chosen, rejected = (
            self._stored(row, side, prompt, answer) or self._ids(prompt, answer, called)
            for side, answer in zip(SIDES, answers, strict=True)
        )
        if chosen == rejected and not is_completion(row):
            raise Unusable("chosen and rejected are the same")
        self._check(prompt, chosen, rejected)
        p = self._once(self.prompts, prompt, (prompt.text, prompt.ids, prompt.second_ids))
        pair = Pair(p, self._response(p, chosen), self._response(p, rejected))
        if pair in self.pairs:
            raise Unusable("they stand in an earlier row")
        self.pairs[pair] = None

    def _check(self, prompt: Prompt, chosen: tuple[int, ...], rejected: tuple[int, ...]) -> None:
        longest = max(len(chosen), len(rejected))
        if not chosen or not rejected:
            raise Unusable("a response is empty")
        if longest > self.max_new_tokens:
            raise Unusable(f"a response is longer than max_new_tokens ({self.max_new_tokens})")
        if self.context is not None and len(prompt.ids) + longest > self.context:
            raise Unusable(f"prompt and response are longer than the model's context ({self.context})")

    def _ids(self, prompt: Prompt, answer: Answer, called: str) -> tuple[int, ...]:
        """The tokens of a response, with the one that ends it."""
        if isinstance(answer, str):
            return self._plain_ids(prompt, answer)
        settings = prompt.columns.get(TEMPLATE_SETTINGS)
        text = render_chat(self.tokenizer, answered(prompt, answer), called, settings=settings, is_complete=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if tuple(ids[: len(prompt.ids)]) != prompt.ids:
            raise Unusable(
                "the chat template writes their prompt differently once it is answered (its settings, e.g. enable_thinking, can "
                f"be written into the column {TEMPLATE_SETTINGS})"
            )
        own = ids[len(prompt.ids) :]
        end = next((t + 1 for t, token in enumerate(own) if token in self.stops), len(own))
        return tuple(own[:end])  # what a template writes behind the end is never sampled

    def _plain_ids(self, prompt: Prompt, answer: str) -> tuple[int, ...]:
        ids = self.tokenizer(prompt.text + answer)["input_ids"]
        goes_on = tuple(ids[: len(prompt.ids)]) == prompt.ids
        # Where the texts merge at the seam, the model still goes on from the prompt's own tokens.
        own = ids[len(prompt.ids) :] if goes_on else self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        return (*own, eos) if eos is not None and eos not in own[-1:] else tuple(own)

    def _stored(self, row: Mapping[str, Any], side: str, prompt: Prompt, answer: Answer) -> tuple[int, ...]:
        """Token ids in the row itself, where they are of this tokenizer: they stand for the same texts."""
        ids = row.get(f"{side}_ids")
        if not isinstance(ids, list) or tuple(row.get("prompt_ids") or ()) != prompt.ids:
            return ()
        if not all(isinstance(token, int) and 0 <= token < len(self.tokenizer) for token in ids):
            return ()
        text = answer if isinstance(answer, str) else answer["content"]
        return tuple(ids) if self.tokenizer.decode(ids, skip_special_tokens=True) == text else ()

    def _response(self, p: int, ids: tuple[int, ...]) -> int:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return self._once(self.rollouts, Rollout(p, ids, (UNKNOWN,) * len(ids), text), (p, ids))

    def _once(self, items: list[Any], item: Any, key: tuple[Any, ...]) -> int:
        """The place of an item in its list, where it is put at its first appearance."""
        place = self._place.setdefault(key, len(items))
        if place == len(items):
            items.append(item)
        return place
