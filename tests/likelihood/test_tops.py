"""Counts read off a few columns equal those of knobs that are shown whole rows; and how often and how much a knob is asked."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fast import LastDigits, agree, rows
from torch import Tensor

from latentknobs import KnobSpace, Stage, TruncationKnob, option_logps
from latentknobs.knobs.knob import Sees
from latentknobs.likelihood import fast, reference, tops


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
@given(case=rows(), first=st.sampled_from([1, 2, 3, 16]), top=st.sampled_from([3, 9, 256]), stack=st.sampled_from([1, 40, 10**5]))
def test_few_columns_tell_the_same(name: str, case: tuple[Tensor, Tensor], first: int, top: int, stack: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tops, "FIRST", first)
        patch.setattr(tops, "STACK", stack)
        patch.setattr(fast, "TOP", top)
        agree(fast.option_logps(*case, SPACES[name]), reference.option_logps(*case, SPACES[name]), 1e-9)


@given(case=rows())
def test_runs_of_equal_tokens_end_where_a_search_says(case: tuple[Tensor, Tensor]) -> None:
    sorted_NV = case[0].sort(-1, descending=True).values
    assert torch.equal(tops.ends(sorted_NV), torch.searchsorted(-sorted_NV, -sorted_NV, right=True))


def test_a_knob_is_asked_once_for_all_chain_beginnings_and_seldom_shown_more_than_a_few_columns() -> None:
    knob = Sure()
    space = KnobSpace.of(GRID, knob)
    random = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(20, 512, generator=random) * 6
    targets_N = logits_NV.argmax(-1)
    knob.shown.clear()
    option_logps(logits_NV, targets_N, space)
    assert knob.shown[0] == (20 * 3 * 3 * 3, tops.FIRST)  # rows, warm temperatures, top-k and values
    assert [width for _, width in knob.shown] == sorted({width for _, width in knob.shown})
    assert all(number < knob.shown[0][0] / 3 for number, _ in knob.shown[1:])


def test_a_knob_that_says_nothing_is_shown_whole_rows_only() -> None:
    knob = Cautious()
    knob.shown.clear()
    option_logps(torch.randn(3, 900), torch.tensor([1, 2, 3]), KnobSpace.of(GRID, knob))
    assert {width for _, width in knob.shown} == {900}
