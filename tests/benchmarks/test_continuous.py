"""The estimators of the benchmark of continuous values."""

from itertools import combinations

import pytest
import torch

from benchmarks.continuous import unbiased
from benchmarks.continuous_levels import VARIANTS, best_temperatures


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 5, 2), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(n: int, c: int, k: int) -> None:
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert unbiased(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_text_of_a_temperature_is_best_explained_by_it() -> None:
    base_NV = (3 * torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).double()).log_softmax(-1)
    for sampled in (0.7, 1.0):
        found = best_temperatures(base_NV, (base_NV / sampled).log_softmax(-1))
        assert list(found) == list(VARIANTS) and found["plain"] == pytest.approx(sampled, abs=0.021)
    assert found["by probability"] == pytest.approx(0.5, abs=0.021)
