"""Rewards by position against plain sums in float64, and what they leave of whole rewards."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner import LENGTHS, cache, learner, moved

from latentknobs.data.columns import Reading
from latentknobs.data.examples import Batch, Example
from latentknobs.data.rollouts import Rollout
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.errors import NoExamplesError
from latentknobs.learners.reinforce.credits import ADVANTAGES, Credited, position_advantages, returns

REWARDS = st.lists(st.floats(-4, 4), min_size=2, max_size=12)


@given(REWARDS, st.floats(0.1, 1))
def test_returns_are_the_discounted_sum_of_what_is_added(rewards: list[float], discount: float) -> None:
    added = [b - a for a, b in pairwise(rewards)]
    expected = [sum(discount ** (s - t) * added[s] for s in range(t, len(added))) for t in range(len(added))]
    assert returns(rewards, discount) == pytest.approx(expected, abs=1e-9)


@given(REWARDS)
def test_without_discount_a_choice_earns_the_reward_over_that_of_the_text_before_it(rewards: list[float]) -> None:
    assert returns(rewards, 1.0) == pytest.approx([rewards[-1] - before for before in rewards[:-1]], abs=1e-9)


def test_a_beginning_without_a_reward_adds_nothing() -> None:
    assert returns([None, 1.0, None, 4.0], 1.0) == [3.0, 3.0, 3.0]  # the first known reward is where it starts from
    assert returns([1.0, None, 3.0], 0.5) == [1.0, 2.0]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["leave_one_out", "group", "mean", "none"]), st.booleans())
def test_advantages_by_position_are_those_of_plain_loops(seed: int, baseline: str, normalise: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    return_PRT = torch.randn(2, 3, 4, generator=rng, dtype=torch.float64)
    return_PRT[torch.rand(2, 3, 4, generator=rng) < 0.3] = torch.nan
    plain = torch.zeros(2, 3, 4, dtype=torch.float64)
    for t in range(4):
        everywhere = [x for p in range(2) for x in return_PRT[p, :, t].tolist() if x == x]
        for p in range(2):
            mine = {r: x for r, x in enumerate(return_PRT[p, :, t].tolist()) if x == x}
            for r, x in mine.items():
                others = [y for q, y in mine.items() if q != r]
                mean = math.fsum(mine.values()) / len(mine)
                deviation = math.sqrt(math.fsum((y - mean) ** 2 for y in mine.values()) / len(mine))
                plain[p, r, t] = {
                    "none": x, "mean": x - math.fsum(everywhere) / len(everywhere), "group": (x - mean) / max(deviation, 1e-8),
                    "leave_one_out": x - math.fsum(others) / len(others) if others else 0.0,
                }[baseline]  # fmt: skip
    counted = return_PRT.isfinite()
    if baseline == "leave_one_out":
        counted &= counted.sum(1, keepdim=True) > 1
    if normalise and counted.any():
        plain /= max(plain[counted].square().mean().sqrt().item(), 1e-8)
    assert torch.allclose(position_advantages(return_PRT, baseline, normalise), plain, atol=1e-6)


def two_prompts() -> tuple[list[Rollout], list[list[float | None]]]:
    rollouts = [Rollout(p, (1,) * T, None, "") for p, T in ((1, 2), (0, 3), (1, 1), (0, 2), (0, 1))]
    return rollouts, [[0, 1, 1], [0, 0, 0, 2], [0, 1], [0, 0, 1], [0, None]]


def test_each_token_of_a_rollout_has_the_advantage_of_its_own_place() -> None:
    rollouts, rewards = two_prompts()
    one = learner(discount=1.0, normalise=False)
    found = one.credited(rollouts, rewards)
    # prompt 1 earns 1 and 1 at its first token, prompt 0 earns 2 and 1; the response without a reward takes no part
    assert [row.advantages for row in found] == [(0.0, 0.0), (1.0, 1.0, 0.0), (0.0,), (-1.0, -1.0), (0.0,)]
    assert one.examples(found, [row[-1] for row in rewards]) == [Example(0, (1,)), Example(0, (3,))]
    assert [row.ids for row in found] == [row.ids for row in rollouts]
    column = ADVANTAGES["advantage_N"].by_segment
    for row, expected in ((found[1], [1.0, 0.0]), (rollouts[1], [0.0, 0.0])):  # a segment has that of its first token
        reading = Reading(row, torch.zeros(3, 2), torch.zeros(3, 1))
        assert column(reading, torch.tensor([0, 0, 1]), torch.tensor([0, 2])).tolist() == expected


def test_rewards_that_never_change_teach_nothing() -> None:
    one, rollouts = learner(discount=0.9), two_prompts()[0]
    steady = [[t / 3 for t in range(len(row.ids) + 1)] for row in rollouts]  # added alike everywhere, up to rounding
    assert not any(sum((row.advantages for row in one.credited(rollouts[:2], steady[:2])), ()))
    found = one.credited(rollouts, [[1.0] * (len(row.ids) + 1) for row in rollouts])
    with pytest.raises(NoExamplesError, match="All 5 rewards are 1"):
        one.examples(found, [1.0] * 5)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.booleans())
def test_the_loss_weighs_each_segment_by_its_own_advantage(seed: int, later: bool) -> None:
    one, head, before, store = learner(discount=0.9), moved(seed), moved(seed + 1) if later else None, cache(seed)
    advantage_N = torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    store = FeatureCache(store.feature_NF, {**store.columns, "advantage_N": advantage_N}, store.start_R1)
    batch = Batch.read(store, [Example(0, (r,)) for r in range(len(LENGTHS))], "cpu")
    loss_B = one.loss(head, batch, before).each_B
    whole, at = learner(), 0
    for r, length in enumerate(LENGTHS):  # a response of one segment is what a whole reward is about
        single = FeatureCache(store.feature_NF, store.columns, torch.arange(sum(LENGTHS) + 1))
        expected = torch.zeros((), dtype=torch.float64)
        for n in range(at, at + length):
            alone = Batch.read(single, [Example(0, (n,), advantage_N[n].item())], "cpu")
            expected = expected + whole.loss(head, alone, before).each_B[0]
        assert torch.allclose(loss_B[r], expected, atol=1e-10)
        at += length


def test_whole_rollouts_with_advantages_are_still_rollouts() -> None:
    row = Rollout(3, (1, 2), (0, 1), "ab", ((0.5,), (1.0,)), (-1.0, -2.0))
    found = Credited.of(row, [0.5, -0.5])
    assert isinstance(found, Rollout) and found.values == row.values and found.advantages == (0.5, -0.5)
