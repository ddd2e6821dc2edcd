"""The measurement of the testbed, small."""

import numpy as np
import pytest

from tools.testbed import measure


def test_a_small_measurement_has_all_cells_and_repeats_itself():
    first, again = (measure.measure(n=6, temperatures=(0.0, 1.0), seed=1) for _ in range(2))
    assert [(cell.task, cell.temperature) for cell in first.cells] == [
        (task, t) for task in ("math", "stories", "constrained") for t in (0.0, 1.0)
    ]
    assert [cell.reward for cell in first.cells] == [cell.reward for cell in again.cells]
    for cell in first.cells:
        assert cell.low <= cell.reward <= cell.high
        assert (cell.constraint is not None) == (cell.task == "constrained")
        if cell.constraint is not None:
            assert cell.reward == pytest.approx((cell.constraint + cell.words) / 2)
    assert measure.table(first).row_count == 3


def test_the_interval_of_the_best_temperature_narrows_with_the_evidence():
    clear = np.array([[1.0] * 40, [0.0] * 40])
    assert measure._summary(measure._best_temperatures(clear, (0.0, 1.0), 0)) == (0.0, 0.0, 0.0)
    torn = np.array([[1.0, 0.0] * 20, [0.0, 1.0] * 20])
    assert measure._summary(measure._best_temperatures(torn, (0.0, 1.0), 0))[1:] == (0.0, 1.0)
