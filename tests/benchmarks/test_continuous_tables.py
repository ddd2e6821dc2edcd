"""The combine step of the benchmark of continuous values: Pass@k against counting, and seeds with their rivals."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from benchmarks.continuous import RIVALS, TUNED, collected, labels, unbiased, worth
from benchmarks.continuous_world import LEARNERS


@pytest.mark.parametrize("n, c", [(5, 0), (5, 2), (6, 3), (4, 4)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_response(n: int, c: int) -> None:
    for k in range(1, n + 1):
        draws = [any(i < c for i in some) for some in combinations(range(n), k)]
        assert unbiased(n, c, k) == pytest.approx(np.mean(draws))


def test_seeds_count_where_their_rivals_are_and_the_tuned_constant_is_their_own(tmp_path: Path) -> None:
    for seed, parts in ((0, (*LEARNERS, RIVALS)), (1, ("lpo", RIVALS)), (2, ("lpo",))):
        for part in parts:
            found = {
                "rewards": {part: [[0.0, 1.0], [1.0, 1.0]], f"{part} b": [[2.0, 2.0], [4.0, 2.0]]},
                "chosen": {},
                "tuned": f"{part} b",
            }
            (tmp_path / f"testbed-{seed}-{part}.json").write_text(json.dumps(found))
    seeds = collected("testbed", tmp_path)
    assert len(seeds) == 2 and len(labels(seeds)["lpo"]) == 2 and len(labels(seeds)["likelihood"]) == 1
    assert seeds[0]["tuned"] == f"{RIVALS} b" and worth(seeds[:1], TUNED).tolist() == [[3.0, 2.0]]
