"""Every way in which pairs mislead is named in a sentence with its numbers, and its near miss is not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.data.examples import Example
from latentknobs.learners.base import Fitted
from latentknobs.learners.lpo.findings import FEW, pair_findings

TASKS = ["math"] * 100 + ["stories"] * 100


def examples(lengths: Sequence[tuple[int, int]], math: int | None = None) -> dict[str, Any]:
    """Pairs of responses of these lengths, `math` (or half) of them of that task."""
    math = len(lengths) // 2 if math is None else math
    pairs = [Example(0 if n < math else 100, (2 * n, 2 * n + 1)) for n in range(len(lengths))]
    return {"examples": pairs, "length_R": [length for pair in lengths for length in pair]}


def accuracy(ours: tuple[int, int], theirs: tuple[int, int] = (57, 100)) -> dict[str, Any]:
    """So many of so many training and held-out pairs in the right order."""
    means = {"train": {"accuracy": ours[0] / ours[1]}, "held_out": {"accuracy": theirs[0] / theirs[1]}}
    return means | {"train_size": ours[1], "held_out_size": theirs[1]}


def longer(share: float, pairs: int = 100) -> list[tuple[int, int]]:
    count = round(share * pairs)
    return [(40, 20)] * count + [(20, 40)] * (pairs - count)


HEALTHY = Fitted(task_P=TASKS, **examples([(30, 28), (28, 30)] * 60), **accuracy((300, 500)))
EQUAL = [(30, 30)] * 40
CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        examples(EQUAL, 30), examples(EQUAL, 29),
        "One task dominates: 'math' gives 30 of 40 (75%) pairs, from 100 of 200 (50%) prompts",
    ),
    (examples(EQUAL, 40), examples(EQUAL, 40) | {"task_P": ["math"] * 200}, "'math' gives 40 of 40 (100%) pairs"),
    (accuracy((350, 500)), accuracy((330, 500)), "orders 350 of 500 (70%) of those rightly, and 57 of 100 (57%) held-out ones"),
    (accuracy((400, 500)), accuracy((400, 500), (6, 10)), "fits its training pairs better"),
    (
        examples(longer(0.7)), examples(longer(0.69)),
        "in 70 of 100 (70%) pairs of unequal length the chosen response is the longer one (on average 34 tokens against 26)",
    ),
    (examples(longer(0.3)), examples(longer(0.31)), "pairs of unequal length the chosen response is the shorter one"),
    (examples(longer(1.0, FEW)), examples(longer(1.0, FEW - 1) + [(5, 5)] * 50), "in 30 of 30 (100%) pairs of unequal"),
]  # fmt: skip


@pytest.mark.parametrize(("failing", "near", "words"), CASES)
def test_a_failure_is_named_alone_and_its_near_miss_is_not(failing: dict[str, Any], near: dict[str, Any], words: str) -> None:
    [sentence] = pair_findings(replace(HEALTHY, **failing))
    assert words in sentence and "\n" not in sentence and sentence.endswith(".")
    assert pair_findings(replace(HEALTHY, **near)) == []


def test_a_healthy_fit_and_one_without_held_out_pairs_are_silent() -> None:
    assert pair_findings(HEALTHY) == pair_findings(replace(HEALTHY, held_out={}, held_out_size=0)) == []


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=60), st.floats(0, 1), st.integers(0, 50),
    st.integers(0, 50),
)  # fmt: skip
def test_no_summary_breaks_it(lengths: list[tuple[int, int]], share: float, some: int, more: int) -> None:
    sides = {"train": {"accuracy": share}, "held_out": {"accuracy": 1 - share}, "train_size": some, "held_out_size": more}
    found = pair_findings(Fitted(task_P=TASKS, **examples(lengths), **sides))
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in found)
