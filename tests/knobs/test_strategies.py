"""Greedy coverage: exact on small cases, never below the proven share of the optimum, and clear about bad input."""

from itertools import combinations, pairwise
from math import e

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs import KnobSpace
from latentknobs.errors import DataError, SpaceError
from latentknobs.knobs.strategies import coverage, greedy_cover, reward_table

TABLES = st.integers(0, 10_000).map(lambda s: torch.rand(5, 7, generator=torch.Generator().manual_seed(s)).round(decimals=1))


@given(TABLES, st.integers(1, 7))
def test_greedy_reaches_the_proven_share_of_the_best_subset(reward_PK: torch.Tensor, count: int) -> None:
    floor = float(reward_PK.amin(-1).mean())
    best = max(coverage(reward_PK, chosen) for chosen in combinations(range(7), count))
    greedy = coverage(reward_PK, greedy_cover(reward_PK, count))
    assert best + 1e-6 >= greedy >= floor + (1 - 1 / e) * (best - floor) - 1e-6


@given(TABLES)
def test_the_first_choice_is_the_best_constant_and_gains_never_grow(reward_PK: torch.Tensor) -> None:
    chosen = greedy_cover(reward_PK, 7)
    assert sorted(chosen) == list(range(7))
    assert float(reward_PK.mean(0)[chosen[0]]) == pytest.approx(float(reward_PK.mean(0).max()))
    values = [coverage(reward_PK, chosen[: n + 1]) for n in range(7)]
    gains = [b - a for a, b in pairwise(values)]
    assert all(gain >= -1e-9 for gain in gains) and all(b <= a + 1e-6 for a, b in pairwise(gains))


@given(st.integers(0, 10_000), st.permutations(range(7)))
def test_the_order_of_prompts_and_options_and_a_constant_per_prompt_do_not_matter(seed: int, order: list[int]) -> None:
    reward_PK = torch.rand(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = greedy_cover(reward_PK, 3)
    shifted_PK = reward_PK + torch.arange(5).unsqueeze(-1)
    assert greedy_cover(shifted_PK.flip(0), 3) == chosen
    assert [order[k] for k in greedy_cover(reward_PK[:, order], 3)] == chosen


def test_two_specialists_cover_more_than_the_two_best_constants() -> None:
    reward_PK = torch.tensor([[1.0, 0.0, 0.7, 0.7], [0.0, 1.0, 0.7, 0.6]])
    assert greedy_cover(reward_PK, 3) == [2, 0, 1]
    assert coverage(reward_PK, [0, 1]) == 1.0 > coverage(reward_PK, [2, 3])


def test_thousands_of_options_are_covered_in_a_moment() -> None:
    space = KnobSpace.of(*({name: [v / 10 for v in range(1, 9)]} for name in ("temperature", "top_p", "min_p", "p_less")))
    reward_PK = torch.rand(64, space.K, generator=torch.Generator().manual_seed(0))
    assert space.K == 4096 and len(set(greedy_cover(reward_PK, 12))) == 12


def test_rewards_of_rollouts_are_averaged_by_prompt_and_option() -> None:
    table_PK = reward_table(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), torch.tensor([1.0, 2.0, 5.0]), 2, 2)
    assert table_PK.nan_to_num(-1).tolist() == [[-1.0, 1.5], [5.0, -1.0]]
    with pytest.raises(DataError, match=r"2 of 4 rewards are missing or not finite\. Sample every option at least once"):
        greedy_cover(table_PK, 1)


@pytest.mark.parametrize("count", [0, 4])
def test_an_impossible_number_of_strategies_is_refused(count: int) -> None:
    with pytest.raises(SpaceError, match=f"{count} strategies cannot be chosen from 3 options. Choose 1 to 3"):
        greedy_cover(torch.zeros(2, 3), count)
