"""Tuning of rivals on the instruct model: what a first heat leaves for all tuning prompts."""

import numpy as np

from benchmarks.instruct.comparison import finalists
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


def test_a_first_heat_halves_what_tuning_costs() -> None:
    names = [*CONSTANTS, *rules("sentences")]
    left = finalists({name: np.array([float(n)]) for n, name in enumerate(names)}, np.array(["so"]))
    assert len(names) * 16 + len(left) * 64 <= len(names) * 64 / 2 + 64
