"""Claims hold where the figures say so, fail where they do not, and name what is missing; races find the best player."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.families import race
from benchmarks.paper.arena import Player
from benchmarks.paper.claims import FAILS, HOLDS, OPEN, Key, compared, decide, judge
from benchmarks.paper.experiment import Field, correct
from benchmarks.paper.recipe import Claim, read_recipe
from latentknobs.evaluation.statistics import Interval
from latentknobs.policies import GreedyPolicy

POLICY = GreedyPolicy()


def table(head: float) -> Field:
    """A field whose figures are given: on `easy` all constants but `bad` tie with the head, on `hard` it earns what is asked."""
    noise_P = np.random.default_rng(0).normal(0, 0.01, 40) * (np.arange(40) >= 20)
    means = {"head": (1.0, head), "cold": (1.0, 0.2), "warm": (1.0, 0.3), "bad": (0.0, 0.1)}
    figures = {name: (np.repeat(pair, 20) + noise_P)[None, None] for name, pair in means.items()}
    groups = {"heads": ["head"], "constants": ["cold", "warm", "bad"], "rules": [], "standard": [], "controls": []}
    return Field({"reward": figures}, groups, {"reward": "warm"}, np.repeat(["easy", "hard"], 20))


def verdict(head: float, **claim: Any) -> str:
    return str(judge(Claim(say="x", **claim), table(head), "head", "reward")["verdict"])


@pytest.mark.parametrize(("head", "expected"), [(0.6, HOLDS), (0.3, OPEN), (0.1, FAILS)])
def test_better_needs_an_interval_above_zero(head: float, expected: str) -> None:
    assert verdict(head, expect="better", over=["tuned"]) == expected


COMPARISONS = [  # expectation, interval, p after the correction, verdict
    ("better", (0.01, 0.3), 0.01, HOLDS), ("better", (0.01, 0.3), 0.06, OPEN), ("better", (-0.3, -0.01), 0.01, FAILS),
    ("not_worse", (-0.01, 0.3), 1.0, HOLDS), ("not_worse", (-0.1, 0.3), 1.0, OPEN), ("not_worse", (-0.015, -0.01), 0.01, FAILS),
    ("wins", (0.51, 0.6), 0.01, HOLDS), ("wins", (0.51, 0.6), 0.06, OPEN), ("wins", (0.4, 0.49), 0.01, FAILS),
    ("never_loses", (0.4, 0.6), 1.0, HOLDS), ("never_loses", (0.4, 0.49), 0.06, HOLDS), ("never_loses", (0.4, 0.49), 0.01, FAILS),
    ("above", (0.31, 0.4), 0.01, HOLDS), ("above", (0.31, 0.4), 0.06, OPEN), ("above", (0.1, 0.2), 0.01, FAILS),
    ("below", (0.1, 0.29), 0.01, HOLDS), ("below", (0.1, 0.31), 0.5, OPEN), ("below", (0.31, 0.4), 0.01, FAILS),
]  # fmt: skip


@pytest.mark.parametrize(("expect", "ends", "p", "expected"), COMPARISONS)
def test_a_comparison_that_shows_nothing_leaves_a_claim_open(
    expect: Any, ends: tuple[float, float], p: float, expected: str
) -> None:
    assert decide(Claim(say="x", expect=expect, value=0.3), Interval(sum(ends) / 2, *ends, p)) == expected


def test_one_correction_takes_in_all_tables_and_conclusions_of_a_recipe() -> None:
    part = read_recipe("ultra").parts["token level"].model_copy(
        update={"claims": [Claim(say="x", expect="better", over=["tuned"])], "measures": ["reward"], "heads": {"head": {}}}
    )  # fmt: skip
    alone, both = table(0.306), [table(0.306), table(0.306)]
    correct([(part, part.sizes["smoke"], alone)])
    correct([(part, part.sizes["smoke"], one) for one in both])
    tuned = Key("reward", "head", "warm")
    raw, once, twice = table(0.306).compare(tuned).p, alone.compare(tuned).p, both[0].compare(tuned).p
    assert raw < once < twice
    rows = [Key("reward", "head", rival, task) for task in ("all", "easy", "hard") for rival in ("cold", "warm", "bad")]
    assert set(alone.corrected) == set(rows)  # 1 decides a conclusion and has half of the error
    assert once == pytest.approx(min(1, 2 * raw), abs=1e-6)


def test_what_was_made_for_a_head_is_in_its_own_tables_and_conclusions_only() -> None:
    found = table(0.3)
    found.groups |= {"heads": ["head", "other"], "controls": ["its mean (head)", "its mean (other)"]}
    found.groups["rules"] = ["statistics-only head (head)", "statistics-only head (other)"]
    ours = ["statistics-only head (head)", "its mean (head)"]
    assert [key.rival for key in found.rows("reward", "head", "all")] == ["other", "cold", "warm", "bad", *ours]
    for over, rivals in (("rules", ours[:1]), ("statistics-only head", ours[:1]), ("its mean", ours[1:])):
        claim = Claim(say="x", expect="better", over=[over])
        assert [key.rival for key in compared(claim, found, "head", "reward")] == rivals


@pytest.mark.parametrize(("head", "expected"), [(0.6, HOLDS), (0.3, OPEN), (0.1, FAILS)])
def test_not_worse_fails_only_below_zero(head: float, expected: str) -> None:
    assert verdict(head, expect="not_worse", over=["tuned"]) == expected


def test_wins_leave_out_the_best_constants_of_a_task_only() -> None:
    asked: Any = {"expect": "wins", "over": ["constants"], "task": "each"}
    assert verdict(0.6, **asked) == HOLDS  # ties with `cold` and `warm` on the easy task do not count
    assert verdict(0.3, **asked) == HOLDS  # equal to the best on the hard task, above the others
    assert verdict(0.15, **asked) == FAILS


def test_losing_anywhere_is_seen() -> None:
    assert verdict(0.3, expect="never_loses", over=["constants"], task="each") == HOLDS
    assert verdict(0.2, expect="never_loses", over=["constants"], task="each") == FAILS


def test_a_mean_is_judged_with_its_interval() -> None:
    assert verdict(0.6, expect="above", value=0.7, task="easy") == HOLDS
    assert verdict(0.6, expect="above", value=0.7, task="hard") == FAILS
    assert verdict(0.6, expect="below", value=0.7, task="hard") == HOLDS


def test_a_missing_rival_is_named_and_not_judged() -> None:
    told = judge(Claim(say="x", expect="better", over=["edt"]), table(0.6), "head", "reward")
    assert told == {"say": "x", "verdict": "not judged", "evidence": "at this size there is no 'edt'"}


def test_only_the_comparisons_that_decide_are_shown() -> None:
    told = judge(Claim(say="x", expect="better", over=["constants"]), table(0.25), "head", "reward")
    assert told["verdict"] == FAILS and "bad" not in told["evidence"] and "against warm -0.025" in told["evidence"]


@pytest.mark.parametrize("count", [1, 3, 12, 48])
def test_a_race_finds_the_best_player_and_looks_closely_only_at_the_last(count: int) -> None:
    players = [Player(str(i), POLICY, str(i)) for i in range(count)]
    looked: Counter[str] = Counter()

    def value(player: Player, limit: int) -> float:
        looked[player.name] += limit
        return -abs(int(player.name) - count // 3)

    assert race(players, 128, value).name == str(count // 3)
    if count == 48:
        assert sum(looked.values()) <= 0.75 * 48 * 128
        assert sorted(looked.values())[0] == 32 and max(looked.values()) >= 128
