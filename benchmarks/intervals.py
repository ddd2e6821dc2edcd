"""How often the 95 % intervals of reports contain the truth, in simulation.

    python -m benchmarks.intervals

Outcomes that are normal, skewed, or rare, for 16 to 1,000 prompts; and new training seeds. The percentile bootstrap stands beside
them: what it covers is why reports use something else.
"""

from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.fitting import save
from latentknobs.evaluation.statistics import estimate

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]
UNIT, SIGNED = (0.0, 1.0), (-1.0, 1.0)


def _rare(up: float, down: float = 0.0) -> Draw:
    """1 with one probability, -1 with another, else 0: one outcome, or the difference of two that are paired."""

    def draw(rng: np.random.Generator, n: int) -> Floats:
        u = rng.random(n)
        return (u < up) * 1.0 - (u > 1 - down)

    return draw


CASES: dict[str, tuple[Draw, float, tuple[float, float] | None]] = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0, None),
    "skewed (exponential)": (lambda rng, n: rng.exponential(size=n), 1.0, None),
    "very skewed (lognormal)": (lambda rng, n: rng.lognormal(size=n), float(np.exp(0.5)), None),
    "binary, 1 %": (_rare(0.01), 0.01, UNIT),
    "binary, 5 %": (_rare(0.05), 0.05, UNIT),
    "binary, 20 %": (_rare(0.2), 0.2, UNIT),
    "binary, 50 %": (_rare(0.5), 0.5, UNIT),
    "paired, 2 % against 0": (_rare(0.02), 0.02, SIGNED),
    "paired, 5 % against 2 %": (_rare(0.05, 0.02), 0.03, SIGNED),
    "paired, 30 % against 20 %": (_rare(0.3, 0.2), 0.1, SIGNED),
}


def percentile(value_P: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile bootstrap of 1,000 resamples."""
    means = value_P[rng.integers(value_P.size, size=(1000, value_P.size))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@click.command()
@click.option("--repeats", default=2000, show_default=True, help="Simulated evaluations of each kind.")
def main(repeats: int) -> None:
    """Prints and saves the share of intervals that contain the truth, and how wide they are beside the percentile bootstrap's."""
    rows = []
    for name, (draw, truth, ends) in CASES.items():
        for n in (16, 32, 64, 192, 1000):
            rng = np.random.default_rng(n)
            values = [draw(rng, n) for _ in range(repeats)]
            found = [estimate(value, ends) for value in values]
            plain = [percentile(value, rng) for value in values[: repeats // 4]]
            rows.append({
                "outcomes": name, "prompts": n, "covered": float(np.mean([i.low <= truth <= i.high for i in found])),
                "percentile bootstrap": float(np.mean([low <= truth <= high for low, high in plain])),
                "width": float(np.mean([i.high - i.low for i in found])),
                "its width": float(np.mean([high - low for low, high in plain])),
            })  # fmt: skip
            print("; ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{value}" for key, value in rows[-1].items()))
    for seeds, by_seed in ((3, 0.0), (3, 0.1), (3, 0.5), (5, 0.1), (5, 0.5)):
        rng = np.random.default_rng(seeds)
        shape = (seeds, 1), (1, 192), (seeds, 192)
        draws = [sum(s * rng.normal(size=size) for s, size in zip((by_seed, 1, 1), shape, strict=True)) for _ in range(repeats)]
        covered = float(np.mean([(i := estimate(draw)).low <= 0 <= i.high for draw in draws]))
        rows.append(
            {"outcomes": f"normal, {seeds} training seeds apart by {by_seed} of a prompt", "prompts": 192, "covered": covered}
        )
        print(rows[-1])
    save("intervals", {"repeats": repeats, "rows": rows})


if __name__ == "__main__":
    main()
