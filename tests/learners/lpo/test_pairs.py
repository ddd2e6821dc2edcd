"""The three pair rules, and what happens when there is nothing to prefer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.data.examples import Pair
from latentknobs.data.rollouts import Rollout
from latentknobs.errors import ConfigError, NoPairsError
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.space import KnobSpace
from latentknobs.learners.base import Inputs
from latentknobs.learners.lpo.learner import LPO
from latentknobs.learners.lpo.pairs import pick_pairs
from latentknobs.learners.lpo.settings import Settings

scores = st.lists(st.integers(0, 5), min_size=8, max_size=8)


def test_best_against_worst_inside_each_prompt():
    prompts, rewards = [0, 0, 0, 1, 1, 1], [0.2, 0.9, 0.1, 5.0, 7.0, 6.0]
    assert pick_pairs(prompts, rewards, "best_worst") == [Pair(0, 1, 2), Pair(1, 4, 3)]


def test_several_pairs_go_from_the_outside_in_and_stop_at_ties():
    prompts, rewards = [0] * 6, [0, 1, 2, 2, 3, 4]
    pairs = pick_pairs(prompts, rewards, "best_worst", per_prompt=3)
    assert [(rewards[p.chosen], rewards[p.rejected]) for p in pairs] == [(4, 0), (3, 1)]


def test_correct_against_incorrect():
    prompts, rewards = [0, 0, 1, 1, 2, 2], [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert pick_pairs(prompts, rewards, "correct_incorrect") == [Pair(0, 0, 1)]


@given(scores, scores, st.integers(1, 4))
def test_top_bottom_is_the_rule_of_the_constrained_stories(reward, second, top):
    prompts = [0] * 8
    try:
        (pair,) = pick_pairs(prompts, reward, "top_bottom", second_N=second, top=top)
    except NoPairsError:
        assert len(set(reward)) < 8 or len(set(second)) < 8
        return
    ranked = sorted(reward)
    assert reward[pair.chosen] >= ranked[-top]
    assert reward[pair.rejected] <= ranked[top - 1]
    better = [n for n in range(8) if reward[n] > reward[pair.chosen]]
    assert all(second[n] <= second[pair.chosen] for n in better)
    worse = [n for n in range(8) if reward[n] < reward[pair.rejected]]
    assert all(second[n] >= second[pair.rejected] for n in worse)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40), st.integers(1, 3))
def test_pairs_stay_inside_a_prompt_and_always_prefer_more_reward(rows, per_prompt):
    prompts, rewards = [p for p, _ in rows], [r for _, r in rows]
    try:
        pairs = pick_pairs(prompts, rewards, "best_worst", per_prompt=per_prompt)
    except NoPairsError:
        groups = {p: {r for q, r in rows if q == p} for p in prompts}
        assert all(len(values) == 1 for values in groups.values())
        return
    for pair in pairs:
        assert prompts[pair.chosen] == prompts[pair.rejected] == pair.prompt
        assert rewards[pair.chosen] > rewards[pair.rejected]


def test_ties_are_broken_by_the_seed_and_by_nothing_else():
    prompts, rewards = [0] * 8, [1.0] * 4 + [0.0] * 4
    picks = {tuple(pick_pairs(prompts, rewards, "best_worst", seed=seed)) for seed in range(20)}
    assert len(picks) > 1
    assert pick_pairs(prompts, rewards, "best_worst", seed=3) == pick_pairs(prompts, rewards, "best_worst", seed=3)


def test_equal_rewards_say_so_and_what_to_change():
    with pytest.raises(NoPairsError, match=r"All 4 rewards are 0\.5.*more rollouts per prompt"):
        pick_pairs([0, 0, 1, 1], [0.5] * 4, "best_worst")
    with pytest.raises(NoPairsError, match="Within each of the 2 prompts no two rollouts differ"):
        pick_pairs([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0], "best_worst")


@given(st.integers(0, 50))
def test_top_bottom_breaks_ties_of_the_first_score_by_the_second(seed):
    (pair,) = pick_pairs([0, 0], [1.0, 1.0], "top_bottom", second_N=[0.0, 1.0], top=1, seed=seed)
    assert (pair.chosen, pair.rejected) == (1, 0)


def test_top_bottom_needs_a_second_score():
    with pytest.raises(ConfigError, match="Set second_reward"):
        pick_pairs([0, 0], [0.0, 1.0], "top_bottom")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(0, 3), st.none() | st.integers(0, 3)), min_size=1, max_size=40),
    st.sampled_from(["best_worst", "correct_incorrect", "top_bottom"]),
    st.integers(1, 3),
)
def test_a_rollout_without_score_is_in_no_pair_and_changes_no_other_prompt(rows, rule, per_prompt):
    prompts, rewards, second = ([row[i] for row in rows] for i in range(3))

    def pick(kept):
        chosen = [[values[n] for n in kept] for values in (prompts, rewards, second)]
        try:
            return pick_pairs(*chosen[:2], rule, second_N=chosen[2], per_prompt=per_prompt, top=2)
        except NoPairsError:
            return []

    everything = range(len(rows))
    used = {n for pair in pick(everything) for n in (pair.chosen, pair.rejected)}
    scored = [n for n in everything if rewards[n] is not None and (rule != "top_bottom" or second[n] is not None)]
    assert used <= set(scored)
    assert {pair.prompt for pair in pick(everything)} == {pair.prompt for pair in pick(scored)}


def test_nan_counts_as_failed():
    assert pick_pairs([0, 0, 0], [float("nan"), 1.0, 2.0], "best_worst") == [Pair(0, 2, 1)]


def test_when_failures_leave_no_pair_they_are_counted():
    with pytest.raises(NoPairsError, match=r"2 of 4 rollouts have no score and take no part. All 2 rewards are 0\.5\."):
        pick_pairs([0, 0, 1, 1], [0.5, None, None, 0.5], "best_worst")
    with pytest.raises(NoPairsError, match=r"The reward failed on all 3 rollouts.*repair the reward"):
        pick_pairs([0, 0, 1], [None] * 3, "best_worst")
    with pytest.raises(NoPairsError, match=r"1 of 3 rollouts have no score.*Within each of the 2 prompts"):
        pick_pairs([0, 1, 1], [1.0, 0.0, 0.0], "top_bottom", second_N=[1.0, 2.0, None])


def test_a_pair_may_count_by_its_margin_over_the_mean_margin():
    rollouts = [Rollout(n // 2, (1,), None, "") for n in range(4)]
    inputs = Inputs(KnobSpace.of("temperature:0,1"), Every(1), ("hidden",))
    equal, margin = (LPO(Settings(pair_weight=weight), inputs).examples(rollouts, [0, 1, 2, 5]) for weight in ("equal", "margin"))
    assert [one.weight for one in equal] == [1, 1] and [one.weight for one in margin] == [0.5, 1.5]
    with pytest.raises(ConfigError, match="not by one margin"):
        LPO.check(Settings(pair_weight="margin", pair_rule="top_bottom"), has_preferences=False, has_second=True)
    with pytest.raises(ConfigError, match="no rewards, so no margins"):
        LPO.check(Settings(pair_weight="margin"), has_preferences=True, has_second=False)
