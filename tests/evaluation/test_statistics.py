"""Intervals cover what they promise to cover, p-values belong to them, and corrections are Holm's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.evaluation.statistics import ALPHA, estimate, holm, wins

OUTCOMES = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0, None),
    "skewed": (lambda rng, n: rng.exponential(size=n), 1.0, None),
    "rare": (lambda rng, n: (rng.random(n) < 0.03).astype(float), 0.03, (0.0, 1.0)),
    "paired": (lambda rng, n: (rng.random(n) < 0.04) * 1.0 - (rng.random(n) < 0.01) * 1.0, 0.03, (-1.0, 1.0)),
}


@pytest.mark.parametrize("kind", OUTCOMES)
@pytest.mark.parametrize("n", [16, 128])
def test_intervals_cover(kind, n):
    """benchmarks/intervals.py has more of it, from 16 to 1,000 prompts."""
    draw, truth, ends = OUTCOMES[kind]
    rng = np.random.default_rng(0)
    found = [estimate(draw(rng, n), ends) for _ in range(300)]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.93


@pytest.mark.parametrize(("by_seed", "seeds"), [(0.0, 3), (0.3, 3), (0.3, 5)])
def test_intervals_cover_new_training_seeds(by_seed, seeds):
    rng = np.random.default_rng(1)

    def draw():
        return by_seed * rng.normal(size=(seeds, 1)) + rng.normal(size=(1, 100)) + rng.normal(size=(seeds, 100))

    assert np.mean([(one := estimate(draw())).low <= 0 <= one.high for _ in range(300)]) >= 0.92
    over_prompts_alone = [estimate(draw().mean(0)) for _ in range(300)]
    covered = np.mean([one.low <= 0 <= one.high for one in over_prompts_alone])
    assert covered < 0.85 if by_seed else covered > 0.9, "the seeds matter, and leaving them out shows"


values = st.lists(st.integers(-3, 3), min_size=2, max_size=40)


@given(values)
def test_the_mean_is_inside_and_p_says_whether_zero_is(value):
    found = estimate(np.array(value, float), (-3.0, 3.0))
    assert found.low <= found.mean <= found.high and found.mean == pytest.approx(np.mean(value))
    if abs(found.p - ALPHA) > 1e-6:
        assert (found.p < ALPHA) == (found.low > 0 or found.high < 0)


def test_an_interval_over_seeds_is_cut_where_no_share_can_be():
    found = estimate(np.array([[0.5] * 20, [1.0] * 20, [1.0] * 20]), (0.0, 1.0))
    cut = found.within(0.0, 1.0)
    assert found.high > 1 and (cut.mean, cut.low, cut.high, cut.p) == (found.mean, found.low, 1.0, found.p)


@given(st.integers(16, 60), st.integers(0, 20))
def test_p_belongs_to_the_interval_of_continuous_values_too(n, seed):
    found = estimate(np.random.default_rng(seed).gumbel(0.3, size=n))
    assert (found.p < ALPHA) == (found.low > 0 or found.high < 0) or abs(found.p - ALPHA) < 2e-3


@given(values, st.floats(0.1, 10), st.floats(-5, 5))
def test_units_do_not_matter(value, scale, shift):
    one = estimate(np.array(value, float), (-3.0, 3.0))
    other = estimate(np.array(value) * scale + shift, (-3.0 * scale + shift, 3.0 * scale + shift), shift)
    assert np.allclose(np.array([one.low, one.high, one.mean]) * scale + shift, [other.low, other.high, other.mean])
    assert one.p == pytest.approx(other.p)


def test_many_prompts_give_the_normal_interval():
    value = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found, half = estimate(value), 1.96 * value.std() / np.sqrt(2000)
    assert [found.low, found.high] == pytest.approx([value.mean() - half, value.mean() + half], abs=0.01)


def test_equal_seeds_are_as_good_as_one_and_different_ones_are_not():
    value_P = np.random.default_rng(2).normal(size=50)
    one, same = estimate(value_P), estimate(np.stack([value_P] * 3))
    assert [same.low, same.high, same.p] == pytest.approx([one.low, one.high, one.p])
    apart = estimate(np.stack([value_P - 1, value_P, value_P + 1]))
    assert apart.high - apart.low > 3 * (one.high - one.low) and apart.p > one.p


def test_seeds_that_disagree_prompt_by_prompt_alone_keep_their_degrees_of_freedom():
    """Interaction taken off the variance of seeds once left so few that an interval reached from -1e63 to 1e63."""
    rng = np.random.default_rng(5)
    found = [estimate(0.02 * rng.standard_normal(16) + 0.3 * rng.standard_normal((3, 16))) for _ in range(200)]
    assert max(interval.high - interval.low for interval in found) < 1.5


def test_nothing_seen_is_not_nothing():
    assert estimate(np.zeros(16), (-1.0, 1.0)).high > 0.1 > estimate(np.zeros(1000), (-1.0, 1.0)).high > 0


rewards = st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=2)


@given(rewards, rewards)
def test_wins_and_losses_are_two_halves(ours, theirs):
    ours_SP, theirs_SP = np.array(ours, float), np.array(theirs, float)
    assert (wins(ours_SP, theirs_SP) + wins(theirs_SP, ours_SP) == 1).all()
    assert (wins(ours_SP, ours_SP) == 0.5).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(p):
    """Rejecting in order of size, as long as p_(i) (M - i) stays below any level, is comparing corrected p-values with it."""
    order = np.argsort(p, kind="stable")
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, m in enumerate(order):
            if p[m] * (len(p) - rank) >= level:
                break
            rejected.add(int(m))
        assert {m for m, corrected in enumerate(holm(p)) if corrected < level} == rejected


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4)), min_size=1, max_size=6))
def test_a_weight_is_so_many_equal_comparisons_at_the_first_step(pairs):
    p, weights = zip(*pairs, strict=True)
    found = holm(p, weights)
    assert min(found) == pytest.approx(min(1.0, min(x / w for x, w in pairs) * sum(weights)))
    assert all(a >= b - 1e-12 for a, b in zip(found, p, strict=True)) and holm(p, [3.0] * len(p)) == pytest.approx(holm(p))
