"""What the scaling benchmark decides before it looks: nested subsets, which rollouts a pair may come from, saturation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scaling_plan import BLOCK, SHALLOW, Cell, Plan, choose_pairs, interval, saturation, shuffled


def rewards_of(prompts: int, deep: int, seed: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [rng.random(16 if p < deep else SHALLOW).tolist() for p in range(prompts)]


@given(st.integers(0, 5), st.integers(1, 40), st.integers(0, 40))
@settings(deadline=None)
def test_fewer_pairs_are_a_subset_of_more(seed, few, more):
    rewards = rewards_of(80, 10, seed)
    small, large = (choose_pairs(Cell(n, SHALLOW, 300), rewards, seed) for n in (few, few + more))
    assert len(small) == few
    assert large[:few] == small


@given(st.sampled_from([2, 4, 8, 16]), st.integers(0, 5))
@settings(deadline=None)
def test_a_pair_is_the_best_against_the_worst_of_the_first_rollouts(rollouts, seed):
    rewards = rewards_of(40, 25)
    pairs = choose_pairs(Cell(20, rollouts, 300), rewards, seed)
    assert len({pair.prompt for pair in pairs}) == 20
    for pair in pairs:
        seen = rewards[pair.prompt][:rollouts]
        assert len(seen) == rollouts
        assert (seen[pair.chosen], seen[pair.rejected]) == (max(seen), min(seen))


def test_seeds_choose_different_prompts():
    rewards = rewards_of(80, 0)
    first, second = ({pair.prompt for pair in choose_pairs(Cell(20, SHALLOW, 300), rewards, seed)} for seed in (0, 1))
    assert first != second


def test_a_larger_pool_leaves_the_beginning_of_the_order_as_it_was():
    small, large = shuffled(BLOCK, 3), shuffled(2 * BLOCK + 7, 3)
    assert sorted(large) == list(range(2 * BLOCK + 7))
    assert large[:BLOCK] == small
    assert small != sorted(small)


def test_ties_give_no_pair_and_are_not_made_up_for_when_there_are_no_more_prompts():
    rewards = [[0.0, 1.0, 1.0, 0.0]] * 3 + [[1.0] * 4] * 5
    pairs = choose_pairs(Cell(8, SHALLOW, 300), rewards, 0)
    assert sorted(pair.prompt for pair in pairs) == [0, 1, 2]


def test_every_model_has_the_axes_its_pool_allows():
    plan = Plan(pool={"mini": 4_000, "small": 12_000})
    assert [cell.pairs for cell in plan.axes("mini")["pairs"]] == [10, 30, 100, 300, 1_000, 3_000]
    assert [cell.pairs for cell in plan.axes("small")["pairs"]] == [10, 30, 100, 300, 1_000, 3_000, 10_000]
    assert [cell.rollouts for cell in plan.axes("mini")["rollouts"]] == [2, 4, 8, 16]
    names = [cell.name for cells in plan.axes("small").values() for cell in cells]
    assert len(set(names)) == len(names) - 1  # the axes meet in one cell, which is fitted once


def test_a_rising_axis_saturates_at_its_end_and_a_flat_one_at_its_beginning():
    noise_SP = np.random.default_rng(0).normal(0, 0.01, (3, 200))
    assert saturation(np.array([0.0, 0.1, 0.2])[:, None, None] + noise_SP)[0] == 2
    assert saturation(np.zeros((3, 1, 1)) + noise_SP)[0] == 0


def test_an_axis_saturates_where_no_later_value_is_better_beyond_chance():
    noise_CSP = np.random.default_rng(1).normal(0, 0.01, (4, 3, 400))
    first, left = saturation(np.array([0.0, 0.2, 0.2, 0.2])[:, None, None] + noise_CSP)
    assert first == 1
    assert left[0].low > 0.19
    assert left[3].mean == pytest.approx(0)


def test_a_dip_at_the_end_does_not_hide_a_rise_before_it():
    noise_CSP = np.random.default_rng(2).normal(0, 0.01, (3, 3, 400))
    assert saturation(np.array([0.0, 0.2, 0.0])[:, None, None] + noise_CSP)[0] == 1


def test_an_interval_covers_heads_that_disagree_although_the_prompts_agree():
    agreed_SP = np.full((3, 400), 0.1)
    assert interval(agreed_SP).low == pytest.approx(0.1) == interval(agreed_SP).high
    found = interval(agreed_SP + np.array([[-0.1], [0.0], [0.1]]))
    assert found.mean == pytest.approx(0.1)
    assert found.low < 0.05 < 0.15 < found.high
