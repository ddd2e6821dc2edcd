"""Colours follow the rank of a value in its grid: cold at the low end, warm at the high one."""

import pytest

from latentknobs.reporting.colours import COLD, MIDDLE, STRONG, WARM, WEAK, Scale


def scale(*values: float) -> Scale:
    return Scale.of("temperature", [{"temperature": value} for value in (*values, *values[::-1])])


def test_ends_and_middle_have_the_named_colours() -> None:
    made = scale(0.0, 0.3, 1.0)
    assert [made.hue(v) for v in made.values] == [COLD, MIDDLE, WARM]
    assert [made.opacity(v) for v in made.values] == [STRONG, WEAK, STRONG]


def test_places_are_even_whatever_the_values() -> None:
    assert [scale(0, 5, 20, 50).place(v) for v in (0, 5, 20, 50)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_one_value_is_in_the_middle() -> None:
    assert scale(0.7).place(0.7) == 0.5


def test_css_and_solid_are_valid_colours() -> None:
    assert scale(0, 1).css(0) == "rgb(38 103 214 / 0.52)"
    assert scale(0, 1).solid(1) == "#f5ab80"


def test_low_values_are_bluer_and_high_ones_redder() -> None:
    made = scale(*(n / 10 for n in range(11)))
    reds = [made.hue(v)[0] for v in made.values]
    assert reds == sorted(reds)
