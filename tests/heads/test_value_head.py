"""The value head: its ranges, where it begins, what each of its networks reads, and its files."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import latentknobs as lk
from latentknobs.adapter import CONFIG, HEAD
from latentknobs.errors import AdapterError, ConfigError
from latentknobs.heads.segmenters import Every
from latentknobs.heads.value_head import ValueHead
from latentknobs.knobs.columns import Columns
from latentknobs.policies.continuous import ValuePolicy

SPACE = lk.KnobSpace.of("temperature:0.2,1,2", "top_p:0.5,1", "min_p:0,0.2", "top_n_sigma:0,3")
BASE = {"name": "tiny", "type": "llama", "hidden_size": 5, "layers": 2, "vocabulary": 11}


def head_of(seed: int = 0, statistics: bool = False, space: lk.KnobSpace = SPACE, features: int = 5, **more) -> ValueHead:
    """A head with random weights everywhere."""
    torch.manual_seed(seed)
    head = ValueHead(space, features, hidden=7, statistics=statistics, **more)
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    return head


@given(st.integers(0, 10**6), st.floats(0.1, 1e4), st.booleans())
def test_values_stay_in_their_ranges(seed: int, size: float, statistics: bool) -> None:
    head = head_of(seed, statistics).double()
    value_NJ = head(size * torch.randn(9, 5).double(), Columns(size * torch.randn(9, 11).double()))
    for value_N, (low, high) in zip(value_NJ.unbind(-1), head.ranges, strict=True):
        assert (value_N >= low).all() and (value_N <= high).all()


def test_a_new_head_begins_at_neutral_or_near_the_end_that_cuts_less() -> None:
    value_NJ = ValueHead(SPACE, 5)(torch.randn(4, 5) * 100)
    assert (value_NJ == value_NJ[0]).all()
    assert value_NJ[0].tolist() == pytest.approx([1.0, 2.85, 0.975, 0.01], rel=1e-5)


def test_each_network_reads_the_values_before_it_and_truncations_the_statistics() -> None:
    widths = {statistics: [net[0].in_features for net in head_of(statistics=statistics).nets] for statistics in (False, True)}
    assert widths == {False: [5, 6, 7, 8], True: [5, 10, 11, 12]}
    head = head_of()
    seen_NF = torch.randn(3, 5)
    before_NJ = head(seen_NF)
    head.nets[0][2].bias.data += 1  # another temperature moves every later value
    assert (head(seen_NF) != before_NJ).all()
    head.nets[3][2].bias.data += 1  # the last value moves no other
    assert torch.equal(head(seen_NF)[:, :3], head_of_copy(head, 3, -1)(seen_NF)[:, :3])
    with pytest.raises(ConfigError, match="reads statistics of the logits"):
        head_of(statistics=True)(seen_NF)


def head_of_copy(head: ValueHead, j: int, shift: float) -> ValueHead:
    again = ValueHead.of_shape(SPACE, 5, head.Shape(**head.shape()))
    again.load_state_dict(head.state_dict())
    again.nets[j][2].bias.data += shift
    return again


@given(st.integers(0, 10**6))
def test_statistics_of_columns_are_those_of_whole_rows(seed: int) -> None:
    logits_NV = torch.randn(6, 11, generator=torch.Generator().manual_seed(seed)).double() * 3
    head, seen_NF = head_of(seed, statistics=True).double(), torch.randn(6, 5).double()
    row = Columns.of(logits_NV)
    whole_NJ = head(seen_NF, Columns(logits_NV))
    torch.testing.assert_close(head(seen_NF, row), whole_NJ)
    torch.testing.assert_close(head(seen_NF, Columns(row.logit_NC, torch.ones(11).double())), whole_NJ)


def test_statistics_are_of_logits_without_a_familys_cap_and_scale() -> None:
    raw_NV, seen_NF = torch.randn(6, 11).double() * 3, torch.randn(6, 5).double()
    plain, capped = (head_of(3, statistics=True, **more).double() for more in ({}, {"cap": 30.0, "scale": 0.25}))
    final_NV = 0.25 * 30 * (raw_NV / 30).tanh()
    torch.testing.assert_close(capped(seen_NF, Columns(final_NV)), plain(seen_NF, Columns(raw_NV)))
    assert not torch.allclose(plain(seen_NF, Columns(final_NV)), plain(seen_NF, Columns(raw_NV)))


@pytest.mark.parametrize(("knob", "ranges", "message"), [
    ("top_p:0.5,1", ((0.5, 1.5),), "The range of the knob 'top_p' is from 0.5 to 1.5, but its values lie from"),
    ("temperature", ((-1.0, 2.0),), "from -1 to 2, but its values lie from 0"),
    ("temperature", ((2.0, 1.0),), "from 2 to 1, which leaves nothing to choose"),
    ("temperature:0.7", None, "from 0.7 to 0.7, which leaves nothing to choose.*temperature:0.5,1"),
    ("temperature", ((0.0, math.nan),), "leaves nothing to choose"),
    ("temperature", ((0.0, 1.0), (0.0, 1.0)), "There are 2 ranges for the 1 knobs"),
])  # fmt: skip
def test_ranges_that_contradict_the_knob_are_refused(knob, ranges, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ValueHead(lk.KnobSpace.of(knob), 5, ranges)


def test_the_published_range_of_top_p_begins_at_zero() -> None:
    head = ValueHead(lk.KnobSpace.of("top_p"), 5, ((0.0, 1.0),))
    head.nets[0][2].bias.data.fill_(-1e4)
    choice = ValuePolicy(head, head.space, Every(1)).choose(
        lk.Context(hidden_ND=torch.zeros(2, 5), logits_NV=torch.zeros(2, 3)), torch.zeros(2).double()
    )
    assert (choice.value_NJ > 0).all(), "a value that the knob does not know"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_adapter_brings_it_back(tmp_path, dtype) -> None:
    head = head_of(statistics=True, cap=20.0).to(dtype)
    entropy = head_of(space=SPACE, features=1)
    adapter = lk.KnobAdapter(SPACE, head.eval(), Every(3), ("hidden",), BASE, entropy.eval(), ("entropy",))
    again = lk.KnobAdapter.from_pretrained(adapter.save_pretrained(tmp_path / "a"))
    seen = lk.Context(hidden_ND=torch.randn(4, 5), logits_NV=torch.randn(4, 11).to(dtype))
    for mine, theirs in ((adapter.policy(), again.policy()), (adapter.rival_policy(), again.rival_policy())):
        assert torch.equal(mine.choose(seen, torch.zeros(4)).value_NJ, theirs.choose(seen, torch.zeros(4)).value_NJ)
        assert mine.identity() == theirs.identity()
    assert "values of" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(("change", "message"), [
    ({"ranges": [[0.2, 2.0]]}, "There are 1 ranges"),
    ({"ranges": [[0.2, 2.0], [0.0, 3.0], [0.5, 1.5], [0.0, 0.2]]}, "The range of the knob 'top_p'"),
    ({"hidden": 8}, "does not hold a head for 5 features"),
    ({"ranges": "all"}, "the shape of its head is damaged: ranges is 'all'"),
    ({"dtype": "int8"}, "the shape of its head is damaged: dtype"),
    ({"cap": -1.0}, "the shape of its head is damaged: cap"),
])  # fmt: skip
def test_a_changed_shape_is_refused(tmp_path, change, message) -> None:
    lk.KnobAdapter(SPACE, head_of(), Every(1), ("hidden",), BASE).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["head"] |= change
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=message):
        lk.KnobAdapter.from_pretrained(tmp_path)


def test_weights_that_are_not_numbers_are_refused(tmp_path) -> None:
    head = head_of()
    head.nets[1][0].weight.data[0, 0] = torch.nan
    lk.KnobAdapter(SPACE, head, Every(1), ("hidden",), BASE).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=rf"{HEAD} has weights that are not numbers, in nets.1.0.weight"):
        lk.KnobAdapter.from_pretrained(tmp_path)
