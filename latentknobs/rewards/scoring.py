"""Asking a reward: in batches, from the cache where it is known, and without losing a run over one bad answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from latentknobs.errors import BrokenRewardError, RewardError
from latentknobs.rewards.cache import ScoreCache, score_key
from latentknobs.rewards.check import Answer, check_rewards, listed
from latentknobs.rewards.several import Part, Rewards, RewardSpec, resolve_rewards, reward_identity
from latentknobs.rewards.text import Messages

__all__ = ["Score", "ScoreCache", "check_scored", "failure_line", "reward_identity", "score_all"]


@dataclass(frozen=True)
class Score:
    """What a completion is worth.

    Attributes:
        value: the weighted sum of the parts; None if there is none.
        parts: what each reward said; None where it failed or does not apply.
        error: why there is no value.
    """

    value: float | None
    parts: tuple[float | None, ...]
    error: str | None = None


class Item(NamedTuple):
    """What a reward is told about one completion."""

    prompt: str | list[dict[str, Any]]
    completion: str | list[dict[str, Any]]
    columns: dict[str, Any]


def score_all(
    reward: RewardSpec,
    prompts: Sequence[str | Messages],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    batch: int = 1024,
    cache: ScoreCache | None = None,
    whole: bool = True,
    advance: Callable[[int], None] = lambda items: None,
) -> list[Score]:
    """The score of every completion, through TRL's signature `reward(prompts, completions, **columns)`.

    A reward that raises an exception on a batch is asked again item by item, and only the items on which it still does
    have no score; nor has an item for which it returned no finite number. Of several rewards, one that returns None for an
    item does not apply to it and adds nothing, as in TRL; if all do, or one fails, there is no score.

    Args:
        prompts: texts, or conversations; the reward then receives the messages, and the completion as one assistant message.
        columns: the other columns of the prompts, one value for each completion.
        batch: completions in one call of the reward.
        cache: knows and keeps the scores of rewards whose answers stand for themselves (see `Part.item_identity`).
        whole: False where these are some of many, so that it is not for this call to judge that the reward judges nothing.
        advance: called with the number of items just finished.

    Raises:
        RewardError: the reward cannot be called like this, returns the wrong number of values, or scored no item at all.
    """
    rewards = resolve_rewards(reward)
    for part in rewards.parts:
        _check_call(part, columns)
    rows = zip(prompts, completions, strict=True)
    items = [_item(*row, {name: values[n] for name, values in columns.items()}) for n, row in enumerate(rows)]
    scores: list[Score] = []
    for start in range(0, len(items), batch):
        asked = items[start : start + batch]
        answers = [_answers(part, asked, cache) for part in rewards.parts]
        scores += [_total(rewards, row) for row in zip(*answers, strict=True)]
        advance(len(asked))
    if whole:
        check_scored(scores, rewards.name)
    return scores


def check_scored(scores: Sequence[Score], name: str) -> None:
    """Refuses scores of which none has a value.

    Raises:
        RewardError: naming the reward, and the first cause.
    """
    if scores and all(score.value is None for score in scores):
        raise RewardError(
            f"The reward {name!r} scored none of {len(scores)} completions. The first: {scores[0].error} Repair the reward and "
            "start the same command again: the completions are kept."
        )


def failure_line(scores: Sequence[Score]) -> str | None:
    """One sentence on the scores without a value, None if there are none."""
    errors = [score.error for score in scores if score.value is None]
    return f"{len(errors)} of {len(scores)} completions have no score. The first: {errors[0]}" if errors else None


def _item(prompt: str | Messages, completion: str, columns: dict[str, Any]) -> Item:
    if isinstance(prompt, str):
        return Item(prompt, completion, columns)
    return Item([dict(message) for message in prompt], [{"role": "assistant", "content": completion}], columns)


def _answers(part: Part, items: Sequence[Item], cache: ScoreCache | None) -> list[Answer]:
    """The answers of one reward. Of equal items that can be kept only one is asked."""
    if cache is None or part.item_identity is None:
        return _ask(part, items)
    keys: list[Any] = [score_key(part.item_identity, *item) or n for n, item in enumerate(items)]
    answers = {key: Answer(cache[key]) for key in keys if key in cache}
    fresh = {key: item for key, item in zip(keys, items, strict=True) if key not in answers}
    if fresh:
        found = dict(zip(fresh, _ask(part, list(fresh.values())), strict=True))
        cache.add({key: got.value for key, got in found.items() if isinstance(key, str) and got.error is None})
        answers |= found
    return [answers[key] for key in keys]


def _ask(part: Part, items: Sequence[Item]) -> list[Answer]:
    prompts, completions, rows = zip(*items, strict=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    try:
        got = listed(part.function(list(prompts), list(completions), **columns), len(items), part.name)
    except BrokenRewardError:
        raise
    except Exception as error:  # whatever the user's code may raise
        if len(items) == 1:
            text = " ".join(str(error).split())[:300].rstrip(".")
            return [Answer(None, f"{type(error).__name__}: {text}.")]
        return [answer for item in items for answer in _ask(part, [item])]
    return check_rewards(got, len(items), part.name)


def _total(rewards: Rewards, answers: Sequence[Answer]) -> Score:
    values = tuple(answer.value for answer in answers)
    several = len(answers) > 1
    counted = [(part, answer) for part, answer in zip(rewards.parts, answers, strict=True) if part.weight]
    errors = [f"{part.name}: {got.error}" if several else got.error for part, got in counted if got.error is not None]
    if errors:
        return Score(None, values, " ".join(errors))
    given = [(part.weight, answer.value) for part, answer in counted if answer.value is not None]
    if not given:
        return Score(None, values, "The reward does not apply to it: it returned None.")
    total = check_rewards([sum(weight * value for weight, value in given)], 1, rewards.name)[0]
    return Score(total.value, values, total.error)


def _check_call(part: Part, columns: Mapping[str, Any]) -> None:
    try:
        inspect.signature(part.function).bind([], [], **columns)
    except TypeError as error:
        raise BrokenRewardError(
            f"The reward {part.name!r} cannot be called as reward(prompts, completions, "
            f"{', '.join(columns) or '**columns'}): {error}. End its signature with **columns."
        ) from None
    except ValueError:  # a callable without a signature, e.g. of C: let the call speak for itself
        return
