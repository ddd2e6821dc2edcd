"""From a knob's value to a colour: cold blue for the low end of the grid, over grey, to warm orange for the high end.

Colours go by rank in the grid, not by value, so that they work for temperatures and for top-k alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLD, MIDDLE, WARM = (38, 103, 214), (150, 146, 158), (236, 94, 10)
STRONG, WEAK = 0.52, 0.20  # opacity at the ends and in the middle
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Scale:
    """The colours of one knob's values, ascending."""

    knob: str
    values: tuple[float, ...]

    @classmethod
    def over(cls, knob: str, values: Sequence[float], steps: int = 5) -> "Scale":
        """The scale of values that come from no grid: a few of them, from the lowest to the highest."""
        shown = np.quantile(values, np.linspace(0, 1, steps)) if len(set(values)) > steps else values
        return cls(knob, tuple(sorted({float(f"{value:.3g}") for value in shown})))

    @classmethod
    def of(cls, knob: str, options: Sequence[dict[str, float]]) -> "Scale":
        """The scale of one knob of a space, from all options as `{knob: value}`."""
        return cls(knob, tuple(sorted({option[knob] for option in options})))

    def place(self, value: float) -> float:
        """0 for the lowest value of the grid, 1 for the highest, evenly spaced, linear between; 0.5 if there is only one."""
        last = len(self.values) - 1
        return float(np.interp(value, self.values, np.arange(last + 1) / last)) if last else 0.5

    def opacity(self, value: float) -> float:
        """How strong the colour is: weakest in the middle, where it is grey."""
        return round(WEAK + (STRONG - WEAK) * abs(2 * self.place(value) - 1), 3)

    def hue(self, value: float) -> Rgb:
        """The colour before opacity."""
        place = self.place(value)
        return _blend(COLD, MIDDLE, 2 * place) if place < 0.5 else _blend(MIDDLE, WARM, 2 * place - 1)

    def css(self, value: float) -> str:
        """A background that suits light and dark pages, since it lets them shine through."""
        red, green, blue = self.hue(value)
        return f"rgb({red} {green} {blue} / {self.opacity(value)})"

    def solid(self, value: float) -> str:
        """The same colour on white, as `#rrggbb`: for terminals and pictures, under black text."""
        return f"#{bytes(_blend((255, 255, 255), self.hue(value), self.opacity(value))).hex()}"


def _blend(start: Rgb, end: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue
