"""Counts read off a few columns equal those of knobs that are shown whole rows; and how often and how much a knob is asked."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_table import LastDigits, assert_agree, rows
from torch import Tensor

from latentknobs import KnobSpace, Stage, TruncationKnob, option_logps
from latentknobs.knobs.knob import Sees, extend_over_ties
from latentknobs.likelihood import reference, table


class Cautious(TruncationKnob):
    """Top-p for any `sees`, which remembers what it was shown."""

    name: ClassVar[str] = "cautious"
    stage: ClassVar[Stage] = Stage.MASS
    neutral: ClassVar[float] = 1.0
    shown: ClassVar[list[tuple[int, int]]] = []
    options: tuple[float, ...] = (0.3, 0.9, 0.99, 1.0)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        self.shown.append((len(sorted_NV), sorted_NV.shape[1]))
        return 1 + (sorted_NV.softmax(-1).cumsum(-1) < value_N.unsqueeze(-1)).sum(-1)


class Sure(Cautious):
    """The same with a promise."""

    name: ClassVar[str] = "sure"
    sees: ClassVar[Sees] = "mass"


GRID = {"temperature": [0.0, 0.5, 1.0, 1.6], "top_k": [0, 2, 9], "min_p": [0.0, 0.1]}
ORDER = ["temperature", "top_k", "min_p"]
SPACES = {
    name: KnobSpace.of(GRID, knob, order=[*ORDER[:place], knob.name, *ORDER[place:]])
    for knob in (Cautious(), Sure(), LastDigits())
    for place in range(4)
    for name in [f"{knob.name} after {place}"]
}


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=10)
@given(case=rows(), first=st.sampled_from([1, 2, 3, 16]), top=st.sampled_from([3, 9, 256]))
def test_few_columns_tell_the_same(name: str, case: tuple[Tensor, Tensor], first: int, top: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "FIRST", first)
        patch.setattr(table, "TOP", top)
        assert_agree(table.option_logps(*case, SPACES[name]), reference.option_logps(*case, SPACES[name]), 1e-9)


@given(case=rows(), seed=st.integers(0, 10**6))
def test_counts_are_extended_to_the_end_of_the_ties(case: tuple[Tensor, Tensor], seed: int) -> None:
    sorted_NV = case[0].sort(-1, descending=True).values
    N, V = sorted_NV.shape
    count_NG = torch.randint(-1, V + 2, (N, 3), generator=torch.Generator().manual_seed(seed))
    slow_NG = [[sum(z >= row_V[min(max(count, 1), V) - 1] for z in row_V) for count in counts]
               for row_V, counts in zip(sorted_NV.tolist(), count_NG.tolist(), strict=True)]  # fmt: skip
    assert extend_over_ties(sorted_NV, count_NG).tolist() == slow_NG


def test_a_knob_is_asked_once_per_prefix_and_seldom_shown_more_than_a_few_columns() -> None:
    knob = Sure()
    space = KnobSpace.of(GRID, knob)
    random = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(20, 512, generator=random) * 6
    targets_N = logits_NV.argmax(-1)
    knob.shown.clear()
    option_logps(logits_NV, targets_N, space)
    first = [number for number, width in knob.shown if width <= table.FIRST + 1]
    assert first == [20 * 3] * (3 * 3)  # rows and values, for warm temperatures and top-k
    assert sum(number for number, width in knob.shown if width > table.FIRST + 1) < sum(first) / 3


def test_a_knob_that_says_nothing_is_shown_whole_rows_only() -> None:
    knob = Cautious()
    knob.shown.clear()
    option_logps(torch.randn(3, 900), torch.tensor([1, 2, 3]), KnobSpace.of(GRID, knob))
    assert {width for _, width in knob.shown} == {900}
