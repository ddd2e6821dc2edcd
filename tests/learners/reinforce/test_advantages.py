"""Advantages: parallel budgets against the plain definition, baselines, and rewards that are missing."""

import itertools
import math
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.learners.reinforce.advantages import baselined, group_rewards, values, varies

REWARDS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=6)


def tensor(rewards: list[float]) -> Tensor:
    return torch.tensor(rewards, dtype=torch.float64)


@given(REWARDS, st.data())
def test_values_are_means_over_the_groups_with_and_without_a_response(rewards: list[float], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(rewards)))
    inside_R, outside_R = values(tensor(rewards), size)
    for i in range(len(rewards)):
        groups = [S for S in itertools.combinations(range(len(rewards)), size) if i in S]
        assert float(inside_R[i]) == pytest.approx(fmean(max(rewards[j] for j in S) for S in groups))
        others = [j for j in range(len(rewards)) if j != i]
        left = list(itertools.combinations(others, min(size, len(others))))
        assert float(outside_R[i]) == pytest.approx(fmean(max(rewards[j] for j in S) for S in left))


@given(REWARDS)
def test_a_budget_of_one_is_the_reward_and_leave_one_out_the_mean_of_the_others(rewards: list[float]) -> None:
    inside_R, outside_R = values(tensor(rewards))
    assert inside_R.tolist() == rewards
    total, n = sum(rewards), len(rewards)
    assert outside_R.tolist() == pytest.approx([(total - reward) / (n - 1) for reward in rewards])


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.integers(1, 3), st.sampled_from(["best", "majority"]))
def test_the_advantages_of_groups_estimate_the_gradient_without_bias(chance: list[float], size: int, rule: str) -> None:
    """A bandit of three answers, enumerated: three draws, B of which earn together. `J_B` is differentiated exactly."""
    weight_K = torch.tensor(chance, dtype=torch.float64, requires_grad=True)
    log_pi_K, reward_K = weight_K.log_softmax(-1), tensor([0.0, 1.0, 0.25])
    draws = list(itertools.product(range(3), repeat=3))
    estimate_K, exact = torch.zeros(3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for draw in draws:
        inside_R, outside_R = values(reward_K[list(draw)], size, rule, draw)
        advantage_R = baselined(inside_R[None], outside_R[None], "leave_one_out")[0] * size
        part = (advantage_R * log_pi_K[list(draw)]).mean()
        estimate_K += log_pi_K[list(draw)].sum().exp().detach() * torch.autograd.grad(part, weight_K, retain_graph=True)[0]
    for group in itertools.product(range(3), repeat=size):
        earned = group_rewards(reward_K[list(group)], size, rule, group)[1]
        exact = exact + log_pi_K[list(group)].sum().exp() * earned.squeeze()
    assert torch.allclose(estimate_K, torch.autograd.grad(exact, weight_K)[0], atol=1e-12)


def test_the_majority_earns_what_its_answer_earns_and_ties_are_shared() -> None:
    earned = group_rewards(tensor([1.0, 0.0, 0.0]), 3, "majority", ["7", "5", "5"])[1]
    assert earned.tolist() == [0.0]
    assert group_rewards(tensor([1.0, 0.0]), 2, "majority", ["7", "5"])[1].tolist() == [0.5]
    assert group_rewards(tensor([1.0, 0.0, 0.0]), 3, "majority", ["7", None, None])[1].tolist() == [1.0]
    assert group_rewards(tensor([1.0, 0.0]), 2, "majority", [None, None])[1].tolist() == [0.5]


@given(REWARDS, st.integers(0, 5))
def test_a_missing_reward_changes_nothing_for_the_others(rewards: list[float], place: int) -> None:
    place = min(place, len(rewards))
    holed = [*rewards[:place], math.nan, *rewards[place:]]
    for whole_R, holed_R in zip(values(tensor(rewards)), values(tensor(holed)), strict=True):
        assert holed_R[place].isnan()
        assert torch.equal(torch.cat([holed_R[:place], holed_R[place + 1 :]]), whole_R)


def test_too_few_rewards_are_no_advantage() -> None:
    assert values(tensor([1.0, math.nan]))[0].isnan().all()
    assert values(tensor([1.0, 0.0, math.nan]), size=3)[0].isnan().all()


def test_baselines() -> None:
    value_PR = tensor([[1.0, 0.0, 0.0, math.nan], [0.5, 0.5, 0.5, 0.5]])
    without_PR = torch.stack([values(reward_R)[1] for reward_R in value_PR])
    one, two = baselined(value_PR, without_PR, "leave_one_out")
    assert one[:3].tolist() == [1.0, -0.5, -0.5] and one[3].isnan() and two.tolist() == [0.0] * 4
    assert baselined(value_PR, without_PR, "none").nan_to_num(-1).tolist()[0] == [1.0, 0.0, 0.0, -1.0]
    assert float(baselined(value_PR, without_PR, "mean").nanmean()) == pytest.approx(0, abs=1e-15)
    group_PR = baselined(value_PR, without_PR, "group")
    assert group_PR[0, :3].square().mean() == pytest.approx(1) and group_PR[1].tolist() == [0.0] * 4
    assert varies(value_PR, without_PR).tolist() == [True, False]


@given(REWARDS.filter(lambda rewards: len(set(rewards)) > 1), st.floats(0.1, 10), st.floats(-3, 3))
def test_group_normalised_advantages_know_no_scale(rewards: list[float], scale: float, offset: float) -> None:
    value_PR = tensor(rewards)[None]
    moved_PR = value_PR * scale + offset
    plain, moved = (baselined(v, torch.zeros_like(v), "group") for v in (value_PR, moved_PR))
    assert torch.allclose(plain, moved, atol=1e-9)


def test_too_many_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"There are 601,080,390 groups of 16 among 32 responses"):
        group_rewards(torch.zeros(32, dtype=torch.float64), 16, "best")
