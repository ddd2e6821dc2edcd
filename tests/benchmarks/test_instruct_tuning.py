"""Tuning of rivals on the instruct model: what a first heat leaves for all tuning prompts."""

from typing import Any

import numpy as np
import pytest

from benchmarks.instruct.arena import Arena
from benchmarks.instruct.comparison import Sizes, finalists, tuning
from benchmarks.instruct.rivals import CONSTANTS, rules
from benchmarks.instruct.tasks import TASKS


def test_the_best_quarter_goes_on_and_that_of_each_task_too() -> None:
    task_P = np.array(["so", "sums"] * 2)
    heat = {"all": np.array([0.6, 0.6, 0.6, 0.6]), "so": np.array([1.0, 0, 0.9, 0]), "sums": np.array([0, 0.9, 0, 0.9]),
            "none": np.array([0.1, 0.1, 0.1, 0.1])}  # fmt: skip
    assert finalists(heat, task_P) == ["all", "so", "sums"]
    assert finalists(heat, np.array(["so"] * 4)) == ["all"]


def test_prompts_of_a_first_heat_begin_those_of_the_second() -> None:
    for task in ("so", "mixture"):
        rows = TASKS[task].rows(False, 64)
        assert TASKS[task].rows(False, 16) == rows[:16] and len(rows) == 64


def test_the_tuned_ones_have_answered_every_prompt_and_the_best_is_among_them() -> None:
    """With rewards of a table in place of responses."""
    task = TASKS["mixture"]
    names = [*CONSTANTS, *rules(task.kind)]
    asked: dict[str, list[int]] = {}

    class Table(Arena):
        def __init__(self) -> None:
            self.task = task

        def score(self, policy: Any, *, held_out: bool, count: int, copies: int, seed: int = 0) -> Any:
            asked.setdefault(policy, []).append(len(task.rows(held_out, count)))
            place = names.index(policy)
            rows = task.rows(held_out, count)
            worth = [
                place if row["task"] == "so" else -place for row in rows
            ]  # the last is best at one task, the first at another
            return np.repeat(np.array(worth, float)[:, None], copies, 1), [""]

    found = tuning(Table(), names, Sizes(8, 1, 21))
    assert {names[0], names[-1]} <= found.keys() and all(len(reward_P) == 20 for reward_P in found.values())
    assert all(asked[name] == ([16, 20] if name in found else [16]) for name in names)
    assert len(found) < len(names)


@pytest.mark.parametrize("spread", [0.002, 0.01, 0.1])
def test_what_a_first_heat_rules_out_by_chance_is_worth_little(spread: float) -> None:
    """Rewards of 56 rivals on 64 prompts x 8, with the noise of "So": .27 a response."""
    rng, lost = np.random.default_rng(0), []
    for _ in range(300):
        mean_K = rng.normal(0.35, spread, 56)
        reward_KP = mean_K[:, None] + rng.normal(0, 0.27 / 8**0.5, (56, 64))
        left = finalists({str(k): reward_KP[k, :16] for k in range(56)}, np.array(["so"] * 16))
        chosen = max(map(int, left), key=lambda k: reward_KP[k].mean())
        lost.append(mean_K[reward_KP.mean(1).argmax()] - mean_K[chosen])
    assert np.mean(lost) < 0.001 and len(left) == 14
