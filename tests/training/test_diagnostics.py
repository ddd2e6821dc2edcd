"""Every known failure is named in a sentence with its numbers, and its near miss is not."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from bandit import BEST, SPACE, fit_pairs, lpo, new_head, play
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.config import make_config
from latentknobs.data.examples import Example
from latentknobs.heads.segmenters import Every, parse_level
from latentknobs.learners.base import Count, Fitted, Inputs
from latentknobs.learners.lpo.learner import LPO
from latentknobs.training.diagnostics import CHECKS, Facts, diagnose
from latentknobs.training.facts import evenly, facts_of_round, option_usage, tied_prompts
from latentknobs.training.fit import evaluate

OPTIONS = ("temperature 0", "temperature 0.5", "temperature 1")
HEALTHY = Facts(
    options=OPTIONS,
    usage={"math": [0.9, 0.1, 0.0], "stories": [0.1, 0.3, 0.6]},
    entropy=0.8,
    tied=Count(40, 200),
    head_length=29.0,
    constant_length=28.0,
    skipped=Count(10, 1000),
    failed=Count(0, 1600),
)
MOST = math.log(3)


CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"failed": Count(20, 1600)}, {"failed": Count(15, 1600)}, "The reward failed on 20 of 1600 (1%) responses"),
    ({"tied": Count(100, 200)}, {"tied": Count(99, 200)}, "Rewards tie: for 100 of 200 (50%) prompts all rollouts earn the same"),
    (
        {"skipped": Count(900, 1000)}, {"skipped": Count(899, 1000)},
        "The options hardly differ: min_spread left out 900 of 1000 (90%) segments",
    ),
    ({"entropy": 0.99 * MOST}, {"entropy": 0.985 * MOST}, "nearly uniform: its mean entropy is 1.088 of at most 1.099 nats"),
    (
        {"usage": {"math": [0.01, 0.99, 0.0], "stories": [0.0, 0.985, 0.015]}},
        {"usage": {"math": [0.01, 0.99, 0.0], "stories": [0.0, 0.97, 0.03]}},
        "has collapsed to a constant: it takes temperature 0.5 in at least 98.5% of the segments of every task",
    ),
    (
        {"usage": {"math": [1.0, 0.0, 0.0]}}, {"usage": {"math": [1.0, 0.0, 0.0], "stories": [0.0, 0.0, 1.0]}},
        "takes temperature 0 in at least 100.0%",
    ),
    (
        {"values": {"temperature": (0.7, 0.03, 1.9), "top_p": (0.95, 0.009, 0.5)}},
        {"values": {"temperature": (0.7, 0.03, 1.9), "top_p": (0.95, 0.011, 0.5)}},
        "its values differ by less than 2% of their ranges from temperature 0.7, top_p 0.95",
    ),
    (
        {"head_length": 40.0, "constant_length": 32.0}, {"head_length": 39.0, "constant_length": 32.0},
        "makes responses longer: 40 tokens on average, against 32 of the tuned constant",
    ),
    ({"head_length": 32.0, "constant_length": 40.0}, {"head_length": 33.0, "constant_length": 40.0}, "makes responses shorter"),
]  # fmt: skip


@pytest.mark.parametrize(("failing", "near", "told"), CASES)
def test_a_failure_is_told_alone_and_its_near_miss_is_not(failing: dict[str, Any], near: dict[str, Any], told: str) -> None:
    [sentence] = diagnose(replace(HEALTHY, **failing))
    assert told in sentence and "\n" not in sentence and sentence.endswith(".")
    assert diagnose(replace(HEALTHY, **near)) == []


def test_every_check_has_a_case() -> None:
    assert {check for check in CHECKS for failing, _, _ in CASES if check(replace(HEALTHY, **failing))} == set(CHECKS)


def test_a_healthy_run_and_a_run_that_knows_nothing_are_silent() -> None:
    assert diagnose(HEALTHY) == diagnose(Facts()) == []


def test_a_uniform_head_that_happens_to_prefer_one_option_is_only_called_uniform() -> None:
    [sentence] = diagnose(replace(HEALTHY, entropy=MOST, usage={"math": [1.0, 0.0, 0.0]}))
    assert "nearly uniform" in sentence


def test_one_option_is_neither_uniform_nor_constant() -> None:
    assert diagnose(Facts(options=("temperature 1",), usage={"all": [1.0]}, entropy=0.0)) == []


shares = st.floats(0, 1)


@given(shares, shares, st.integers(0, 50), st.integers(0, 50))
def test_no_summary_breaks_it(a: float, b: float, some: int, more: int) -> None:
    count = Count(some, some + more)
    facts = Facts(OPTIONS, {"x": [a, b, 0.0]}, a * MOST, count, 100 * a, 100 * b, count, Count(more, some + more))
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in diagnose(facts))


# -- gathering -----------------------------------------------------------------------------------------------------------

CACHE, PAIRS = play(parse_level("every:3"), 120)
CONFIG = make_config({"pairs_per_step": 16, "steps": 80, "learning_rate": 0.01, "beta": 0.5})


def facts(settings: dict[str, Any] | None = None, **more: Any) -> tuple[Facts, list[str]]:
    """What a fit on the bandit shows; every prompt is a task of its own parity."""
    config = CONFIG.replace(**settings or {})
    head = fit_pairs(new_head(CACHE), CACHE, PAIRS[20:], PAIRS[:20], config)
    tasks = [("even", "odd")[n % 2] for n in range(120)]
    train, held_out = ([pair.example for pair in side] for side in (PAIRS[20:], PAIRS[:20]))
    return facts_of_round(lpo(config), head, CACHE, train, held_out, config, task_P=tasks, length_R=[9] * 240, **more)


def test_a_fit_that_found_the_best_options_has_nothing_to_look_at() -> None:
    found, findings = facts(prompt_N=[0, 0, 1, 1], reward_N=[0.0, 1.0, 2.0, 1.0], skipped=Count(0, 10))
    assert diagnose(found) == findings == []
    assert set(found.usage) == {"even", "odd"}


def test_a_learner_finds_from_means_over_some_of_its_examples() -> None:
    seen = []

    class Curious(LPO):
        def findings(self, fitted: Fitted) -> list[str]:
            seen.append(fitted)
            return ["Look."]

    learner, head = Curious(LPO.Settings(), Inputs(SPACE, Every(1), ("hidden",))), new_head(CACHE, seed=3)
    torch.nn.init.normal_(head.mlp[-1].weight)
    many = [pair.example for pair in PAIRS] * 10
    _, findings = facts_of_round(learner, head, CACHE, many, [], CONFIG, task_P=["a"] * 120, length_R=range(240))
    [fitted] = seen
    assert findings == ["Look."] and fitted.examples == many and (fitted.train_size, fitted.held_out_size) == (512, 0)
    assert fitted.train == evaluate(learner, head, CACHE, evenly(many, 512), CONFIG) and fitted.held_out == {}
    assert fitted.length_R == range(240)


@pytest.mark.parametrize(
    ("settings", "told"), [({"learning_rate": 1e-9}, "nearly uniform"), ({"entropy_bonus": 100.0}, "nearly uniform")]
)
def test_a_fit_that_learned_nothing_is_named(settings: dict[str, Any], told: str) -> None:
    assert any(told in sentence for sentence in diagnose(facts(settings)[0]))


def test_a_constant_head_is_named_from_real_usage() -> None:
    head = new_head(CACHE)
    torch.nn.init.constant_(head.mlp[-1].bias[1:2], 50.0)
    for pick in ("greedy", "sample"):
        usage = option_usage(head, CACHE, {0: "a", 1: "a", 5: "b"}, pick)
        assert usage == {"a": pytest.approx([0, 1, 0]), "b": pytest.approx([0, 1, 0])}
        assert "temperature 0.5" in diagnose(Facts(options=OPTIONS, usage=usage))[0]


def test_usage_counts_every_segment_of_a_task_once() -> None:
    head = fit_pairs(new_head(CACHE), CACHE, PAIRS, [], CONFIG)
    tasks = {r: ("a", "b")[r % 3 == 0] for r in range(30)}
    usage = {pick: option_usage(head, CACHE, tasks, pick) for pick in ("greedy", "sample")}
    for task in ("a", "b"):
        rows = torch.cat([torch.arange(int(CACHE.start_R1[r]), int(CACHE.start_R1[r + 1])) for r in tasks if tasks[r] == task])
        log_pi_NK = head(CACHE.feature_NF[rows]).detach()
        counts = log_pi_NK.argmax(-1).bincount(minlength=SPACE.K)
        assert usage["greedy"][task] == pytest.approx((counts / len(rows)).tolist())
        assert usage["sample"][task] == pytest.approx(log_pi_NK.exp().mean(0).tolist(), abs=1e-5)
        assert set(BEST) == {k for k in range(3) if counts[k] > 0}


def test_ties_are_counted_by_prompt_among_those_with_two_rewards() -> None:
    prompt_N = [0, 0, 1, 1, 2, 2, 3, 3, 4]
    reward_N = [1.0, 1.0, 1.0, 2.0, 3.0, None, 0.5, 0.5, 7.0]
    assert tied_prompts(prompt_N, reward_N) == Count(2, 3)
    assert tied_prompts([], []) == Count(0, 0)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 20))
def test_evenly_takes_some_in_order(items: Sequence[int], most: int) -> None:
    some = evenly(items, most)
    assert len(some) == min(len(items), most)
    assert evenly(list(range(len(items))), most) == sorted(set(evenly(list(range(len(items))), most)))


def test_usage_is_that_of_the_task_of_each_prompt() -> None:
    found, _ = facts_of_round(
        lpo(CONFIG), new_head(CACHE), CACHE, [Example(1, (0, 1))], [], CONFIG, task_P=["a", "b"], length_R=[3, 4],
        reward_N=[None, 1.0], prompt_N=[0, 1],
    )  # fmt: skip
    assert found.failed == Count(1, 2)
    assert set(found.usage) == {"b"} and found.entropy == pytest.approx(MOST)
