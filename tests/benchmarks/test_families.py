"""Families of rules, the race between their members, and the turning point."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.families import ALL, FAMILIES, family, race, tuned, turning_point
from latentknobs.errors import UnknownNameError
from latentknobs.evaluation.tuning import members, settings_of
from latentknobs.policies.names import policy_of


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_members_that_choose_differently(name: str) -> None:
    specs = family(name)
    assert len(specs) >= 10 and len({policy_of(spec).identity() for spec in specs}) == len(set(specs)) == len(specs)


def test_an_unknown_family_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match=r"no family of policies 'mirostad'. Did you mean \"mirostat\""):
        family("mirostad")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=90, unique=True), st.integers(1, 300))
def test_a_race_on_a_score_without_noise_finds_the_best(values: list[float], prompts: int) -> None:
    assert race(values, prompts, lambda value, limit: value) == max(values)


@pytest.mark.parametrize(("size", "limits"), [(ALL, {100}), (ALL + 1, {32, 64, 100})])
def test_only_large_families_race(size: int, limits: set[int]) -> None:
    """In small ones the best is found however it did on the first prompts."""
    found: set[int] = set()

    def score(member: int, limit: int) -> float:
        found.add(limit)
        return float(member == 3) * limit

    assert race(range(size), 100, score) == 3
    assert found == limits


def test_the_turning_point_is_where_the_log_entropy_begins_to_bend_up() -> None:
    assert turning_point([math.exp(x) for x in (0.0, 1.0, 1.9, 2.7, 3.6, 4.6)]) == 3
    assert turning_point([math.exp(x) for x in (0.0, 1.0, 1.9, 2.7)]) == 3, "never: the last"
    assert turning_point([0.0, 0.0, 1.0]) == 1, "an entropy of 0 has no logarithm"


@given(st.floats(0.05, 6), st.floats(0.05, 12))
def test_a_grid_grows_until_the_best_is_inside(base: float, theta: float) -> None:
    """The best of a smooth score lies within one step of its peak, wherever that is."""

    def score(name: str, limit: int) -> float:
        found = settings_of(name)
        return -((math.log(found["base"]) - math.log(base)) ** 2) - (math.log(found["theta"]) - math.log(theta)) ** 2

    start = members("edt", base=[0.6, 1.0, 1.4], theta=[0.3, 1.0, 3.0])
    best, tried = tuned(start, 64, score)
    assert score(best, 64) == max(score(name, 64) for name in tried) and set(start) <= set(tried)
    for name, grid in (("base", (0.6, 1.4)), ("theta", (0.3, 3.0))):
        peak = {"base": base, "theta": theta}[name]
        if peak > 1.3 * grid[1]:
            assert settings_of(best)[name] > grid[1], "it went on upwards"
        if peak < grid[0] / 3:
            assert settings_of(best)[name] < grid[0], "and downwards"
