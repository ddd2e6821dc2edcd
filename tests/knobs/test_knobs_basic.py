"""The first-party knobs, one by one, against the contract and against paper and pencil."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentknobs import DecodingKnob, Stage
from latentknobs.errors import GridError
from latentknobs.knobs.registry import resolve

KNOBS = {"temperature": 1.0, "top_k": 0.0, "top_p": 1.0, "min_p": 0.0}  # with their neutral values
DEFAULT = {name: resolve(name) for name in KNOBS}
EXTREMES = {"top_p": (1e-6,), "top_k": (1.0,), "min_p": (1.0,), "temperature": (0.0, 3.0)}
every_knob = pytest.mark.parametrize("name", KNOBS)


def logits_of(*probs: float) -> Tensor:
    return torch.tensor([probs], dtype=torch.float64).log()


def applied(knob: DecodingKnob, logits_NV: Tensor, value: float) -> Tensor:
    return knob.apply(logits_NV, torch.full((len(logits_NV),), value, dtype=logits_NV.dtype))


def kept(name: str, value: float, *probs: float) -> list[int]:
    return applied(DEFAULT[name], logits_of(*probs), value)[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(("probs", "p", "tokens"), [
    ((0.5, 0.3, 0.2), 0.4, [0]),
    ((0.5, 0.3, 0.2), 0.6, [0, 1]),
    ((0.2, 0.5, 0.3), 0.9, [0, 1, 2]),
    ((0.2, 0.5, 0.3), 1e-9, [1]),
])  # fmt: skip
def test_top_p_keeps_the_smallest_top_set_that_reaches_p(probs: tuple[float, ...], p: float, tokens: list[int]) -> None:
    assert kept("top_p", p, *probs) == tokens


def test_top_k_keeps_k_and_no_more_than_there_are() -> None:
    assert kept("top_k", 2, 0.2, 0.5, 0.3) == [1, 2]
    assert kept("top_k", 99, 0.2, 0.5, 0.3) == [0, 1, 2]


def test_min_p_keeps_what_is_near_the_best() -> None:
    assert kept("min_p", 0.35, 0.2, 0.5, 0.3) == [0, 1, 2]
    assert kept("min_p", 0.45, 0.2, 0.5, 0.3) == [1, 2]
    assert kept("min_p", 1.0, 0.2, 0.5, 0.3) == [1]


@pytest.mark.parametrize("T", [0.25, 1.0, 2.0])
def test_temperature_raises_probabilities_to_one_over_t(T: float) -> None:
    probs = (0.2, 0.5, 0.3)
    powers = [p ** (1 / T) for p in probs]
    found = applied(DEFAULT["temperature"], logits_of(*probs), T).softmax(-1)[0].tolist()
    assert found == pytest.approx([power / sum(powers) for power in powers])


@st.composite
def logits(draw: st.DrawFn) -> Tensor:
    """(N, V) with ties and -inf, never an empty row."""
    V = draw(st.integers(1, 6))
    value = st.sampled_from([-math.inf, -3.0, 0.0, 0.5, 0.5, 20.0]) | st.floats(-30, 30, width=32)
    rows = st.lists(value, min_size=V, max_size=V).filter(lambda row: max(row) > -math.inf)
    return torch.tensor(draw(st.lists(rows, min_size=1, max_size=4)), dtype=torch.float64)


@every_knob
@given(logits_NV=logits())
def test_the_neutral_value_changes_nothing(name: str, logits_NV: Tensor) -> None:
    knob = DEFAULT[name]
    assert knob.neutral == KNOBS[name]
    assert torch.equal(applied(knob, logits_NV, knob.neutral), logits_NV)


@every_knob
@given(logits_NV=logits(), data=st.data())
def test_a_knob_is_pure_row_wise_and_never_empties_or_refills_a_row(name: str, logits_NV: Tensor, data: st.DataObject) -> None:
    knob = DEFAULT[name]
    grid = (*knob.options, *EXTREMES[name])
    rows = st.lists(st.sampled_from(grid), min_size=len(logits_NV), max_size=len(logits_NV))
    value_N = torch.tensor(data.draw(rows), dtype=torch.float64)
    before_NV, before_N = logits_NV.clone(), value_N.clone()
    out_NV = knob.apply(logits_NV, value_N)
    assert torch.equal(logits_NV, before_NV) and torch.equal(value_N, before_N)
    alone_NV = torch.cat([knob.apply(logits_NV[n : n + 1], value_N[n : n + 1]) for n in range(len(value_N))])
    assert torch.equal(out_NV, alone_NV)
    assert out_NV[logits_NV.isneginf()].isneginf().all()
    assert out_NV.isfinite().any(-1).all()
    assert not out_NV.isnan().any()
    best_N1 = logits_NV.argmax(-1, keepdim=True)
    assert out_NV.gather(-1, best_N1).isfinite().all(), "the first best token always stays"


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
@given(logits_NV=logits(), data=st.data())
def test_a_truncation_keeps_logits_as_they_are_and_whole_ties(name: str, logits_NV: Tensor, data: st.DataObject) -> None:
    knob = DEFAULT[name]
    out_NV = applied(knob, logits_NV, data.draw(st.sampled_from(knob.options)))
    stays_NV = out_NV.isfinite()
    assert torch.equal(out_NV[stays_NV], logits_NV[stays_NV])
    lowest_N1 = out_NV.masked_fill(~stays_NV, torch.inf).amin(-1, keepdim=True)
    assert torch.equal(stays_NV, logits_NV >= lowest_N1)


@every_knob
def test_knobs_are_frozen_comparable_and_tell_stage_and_grid(name: str) -> None:
    knob = DEFAULT[name]
    assert knob == resolve(name) and hash(knob) == hash(resolve(name))
    assert isinstance(knob.stage, Stage)
    assert knob.neutral in knob.options
    with pytest.raises(Exception, match="frozen"):
        knob.options = (0.3,)


def test_the_default_temperatures_are_the_paper_s() -> None:
    assert DEFAULT["temperature"].options == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def test_a_setting_that_a_knob_does_not_have_is_refused() -> None:
    with pytest.raises(GridError, match="there is no setting 'speed'"):
        type(DEFAULT["temperature"])(speed=3)
