"""The scores of completions: in batches, from the cache where they are known, and a failed completion does not end a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentknobs.errors import BrokenRewardError, RewardError
from latentknobs.rewards.cache import ScoreCache, score_key
from latentknobs.rewards.calling import DATA, Arguments, arguments_of, call, copies
from latentknobs.rewards.returned import Answer, check_answer, listed
from latentknobs.rewards.spec import Part, Rewards, RewardSpec, resolve_rewards
from latentknobs.rewards.text import Messages

Row = dict[str, Any]  # what a reward receives of one completion: `DATA` and the columns


@dataclass(frozen=True)
class Score:
    """The score of a completion.

    Attributes:
        value: the weighted sum of the parts; None if no part has a value or one failed.
        parts: the value of each reward; None where it failed or does not apply.
        error: why there is no value.
    """

    value: float | None
    parts: tuple[float | None, ...]
    error: str | None = None


def score_all(
    reward: RewardSpec,
    prompts: Sequence[str | Messages],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    batch: int = 1024,
    cache: ScoreCache | None = None,
    whole: bool = True,
    advance: Callable[[int], None] = lambda items: None,
) -> list[Score]:
    """The score of every completion, from rewards that are called as in TRL (see `calling`).

    A reward that raises an exception on a batch is called again row by row, and only the rows on which it still does
    have no score; nor has a row for which it returned something other than a finite number. Of several rewards, one that
    returns None for a row does not apply to it and adds nothing, as in TRL; if all do, or one fails, there is no score.

    Args:
        prompts: texts, or conversations; the reward then receives the messages, and the completion as one assistant message.
        columns: the other columns of the prompts, one value for each completion.
        completion_ids: the tokens of each completion.
        batch: completions in one call of the reward.
        cache: holds the scores of rewards that have an identity.
        whole: if False, do not raise when no completion is scored.
        advance: called with the number of completions just finished.

    Raises:
        RewardError: the reward cannot be called like this, returns the wrong number of values, or scored nothing at all.
    """
    rewards = resolve_rewards(reward)
    if reserved := [name for name in columns if name in DATA]:
        raise RewardError(f"The prompts have a column {reserved[0]!r}, the name of an argument of every reward. Rename it.")
    data = {**dict(zip(DATA, (prompts, completions, completion_ids), strict=True)), **columns}
    names = [name for name, values in data.items() if values is not None]
    rows = [_row(dict(zip(names, row, strict=True))) for row in zip(*(data[name] for name in names), strict=True)]
    arguments = [arguments_of(part.function, names, part.name) for part in rewards.parts]
    scores: list[Score] = []
    for start in range(0, len(rows), batch):
        group = rows[start : start + batch]
        answers = [_answers(*each, group, cache) for each in zip(rewards.parts, arguments, strict=True)]
        scores += [_total(rewards, row) for row in zip(*answers, strict=True)]
        advance(len(group))
    if whole:
        check_scored(scores, rewards.name)
    return scores


def check_scored(scores: Sequence[Score], name: str) -> None:
    """Refuses scores without any value: a RewardError names the reward, and the first cause."""
    if scores and all(score.value is None for score in scores):
        raise RewardError(
            f"The reward {name!r} scored none of {len(scores)} completions. The first: {scores[0].error} Repair the reward and "
            "start the same command again: the completions are kept."
        )


def failure_line(scores: Sequence[Score]) -> str | None:
    """One sentence on the scores without a value, None if there are none."""
    errors = [score.error for score in scores if score.value is None]
    return f"{len(errors)} of {len(scores)} completions have no score. The first: {errors[0]}" if errors else None


def _row(row: Row) -> Row:
    """A row as a reward receives it: of a conversation the messages, and tokens as a list."""
    if "completion_ids" in row:
        row["completion_ids"] = list(row["completion_ids"])
    if not isinstance(row["prompts"], str):
        row["prompts"] = [dict(message) for message in row["prompts"]]
        row["completions"] = [{"role": "assistant", "content": row["completions"]}]
    return row


def _answers(part: Part, arguments: Arguments, rows: Sequence[Row], cache: ScoreCache | None) -> list[Answer]:
    """The answers of one reward. Of equal rows that can be kept only one is scored."""
    if cache is None or part.identity is None:
        return _score(part, arguments, rows)
    keys: list[Any] = [score_key(part.identity, row) or n for n, row in enumerate(rows)]
    answers = {key: Answer(cache[key]) for key in keys if key in cache}
    fresh = {key: row for key, row in zip(keys, rows, strict=True) if key not in answers}
    if fresh:
        found = dict(zip(fresh, _score(part, arguments, list(fresh.values())), strict=True))
        cache.add({key: answer.value for key, answer in found.items() if isinstance(key, str) and answer.error is None})
        answers |= found
    return [answers[key] for key in keys]


def _score(part: Part, arguments: Arguments, rows: Sequence[Row]) -> list[Answer]:
    inputs = copies(arguments, {name: [row[name] for row in rows] for name in rows[0]})
    try:
        return [check_answer(item) for item in listed(call(part.function, arguments, inputs), len(rows), part.name)]
    except BrokenRewardError:
        raise
    except Exception as error:  # whatever the user's code may raise
        if len(rows) == 1:
            text = " ".join(str(error).split())[:300].rstrip(".")
            return [Answer(None, f"{type(error).__name__}: {text}.")]
        return [answer for row in rows for answer in _score(part, arguments, [row])]


def _total(rewards: Rewards, answers: Sequence[Answer]) -> Score:
    values = tuple(answer.value for answer in answers)
    counted = [(part, answer) for part, answer in zip(rewards.parts, answers, strict=True) if part.weight]
    prefix = "{}: " if len(answers) > 1 else ""
    if errors := [prefix.format(part.name) + answer.error for part, answer in counted if answer.error is not None]:
        return Score(None, values, " ".join(errors))
    weighted = [part.weight * answer.value for part, answer in counted if answer.value is not None]
    if not weighted:
        return Score(None, values, "The reward does not apply to it: it returned None.")
    total = check_answer(sum(weighted))
    return Score(total.value, values, total.error)
