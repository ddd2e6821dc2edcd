"""fit finds the known best option of every context, at every level, with every objective, and again on its own policy."""

import math

import pytest
import torch
from bandit import BEST, STOP, choices, fit_pairs, new_head, play

from latentknobs.config import make_config
from latentknobs.heads.segmenters import Delimiter, Segmenter, parse_level
from latentknobs.learners.lpo import OBJECTIVES

SETTINGS = {"steps": 120, "pairs_per_step": 64, "learning_rate": 0.01, "beta": 0.5}
LEVELS = [parse_level("token"), parse_level("every:3"), Delimiter("x", (STOP,)), parse_level("sequence")]


@pytest.mark.parametrize("segmenter", LEVELS, ids=lambda segmenter: segmenter.level)
def test_the_head_finds_the_best_option_of_every_context_at_every_level(segmenter: Segmenter) -> None:
    cache, pairs = play(segmenter, 300)
    head = new_head(cache)
    assert choices(head) != BEST
    fit_pairs(head, cache, pairs[50:], pairs[:50], make_config(SETTINGS))
    assert choices(head) == BEST
    best_C = head(torch.eye(3))[range(3), BEST].exp()
    assert (best_C > 0.6).all(), best_C


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_finds_it(objective: str) -> None:
    cache, pairs = play(parse_level("every:3"), 300)
    head = fit_pairs(new_head(cache), cache, pairs, [], make_config(SETTINGS | {"objective": objective}))
    assert choices(head) == BEST


def test_a_second_round_on_its_own_policy_refers_to_it_and_goes_on_from_there() -> None:
    """The first loss is log 2, since the head is its reference; the margins that follow are over that reference."""
    config = make_config(SETTINGS | {"steps": 40})
    cache, pairs = play(parse_level("every:3"), 300)
    first = fit_pairs(new_head(cache), cache, pairs, [], config)
    cache, pairs = play(parse_level("every:3"), 300, seed=1, policy=first)
    rows: list[dict[str, float]] = []
    second = new_head(cache)
    second.load_state_dict(first.state_dict())
    fit_pairs(second, cache, pairs, [], config, reference=first, log=rows.append)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and rows[-1]["loss"] < 0.68
    assert choices(second) == BEST
    before_C, after_C = (head(torch.eye(3))[range(3), BEST].exp() for head in (first, second))
    assert (after_C > before_C).all()
