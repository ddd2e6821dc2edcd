"""Controls keep what they claim to keep: shuffles the multiset of choices (within bins), mean shift the mean (property 15)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from latentknobs import KnobSpace
from latentknobs.errors import ConfigError
from latentknobs.heads.features import read_features
from latentknobs.heads.segmenters import Delimiter, Every, WholeResponse, parse_level
from latentknobs.knobs.context import Observation
from latentknobs.policies import Branch, Choices, MeanShift, Shuffle
from latentknobs.testing import check_policy

SPACE = KnobSpace.of("temperature", "top_p")
sizes = st.integers(1, 60)


def choices_of(m: int, seed: int, V: int = 12) -> tuple[Choices, torch.Tensor]:
    """M choices and the logits of the places where each was made; some places are equally certain."""
    draw = torch.Generator().manual_seed(seed)
    logits_MV = torch.randn(m, V, generator=draw, dtype=torch.float64) * torch.randint(0, 4, (m, 1), generator=draw)
    entropy_M, max_prob_M = read_features(["entropy", "max_prob"], logits_MV, logits_MV).unbind(-1)
    value_MJ = torch.rand(m, 2, generator=draw, dtype=torch.float64)
    return Choices(value_MJ, entropy_M, max_prob_M), logits_MV


def rows(logits_NV: torch.Tensor, position: int = 0) -> Observation:
    n = len(logits_NV)
    return Observation(
        hidden_ND=logits_NV, logits_NV=logits_NV, position_N=torch.full((n,), position), previous_NL=torch.zeros(n, 1).long()
    )


def as_multiset(value_MJ: torch.Tensor) -> list[list[float]]:
    return sorted(value_MJ.tolist())


@given(sizes, st.integers(0, 5), st.floats(0, 0.999))
def test_a_row_that_is_long_enough_makes_every_choice_exactly_once(m, seed, uniform):
    choices, logits_MV = choices_of(m, seed)
    policy = Shuffle(SPACE, Every(1), choices)
    state, found = policy.start(1), []
    for n in range(m):
        choice = policy.choose(rows(logits_MV[n : n + 1]), torch.tensor([uniform]).double(), state)
        state = choice.state
        found.append(choice.value_NJ[0])
    assert as_multiset(torch.stack(found)) == as_multiset(choices.value_MJ)


@given(sizes, st.integers(0, 5), st.floats(0, 0.999))
def test_a_shuffle_within_bins_makes_every_choice_once_and_in_its_own_bin(m, seed, uniform):
    """Shown the places where the choices were made, in any order, it makes exactly these choices, and each within its bin."""
    choices, logits_MV = choices_of(m, seed)
    policy = Shuffle(SPACE, Every(1), choices, binned=True)
    bin_M = policy._bin(choices.entropy_M, choices.max_prob_M)
    state, found = policy.start(1), []
    for n in torch.randperm(m, generator=torch.Generator().manual_seed(seed)).tolist():
        choice = policy.choose(rows(logits_MV[n : n + 1]), torch.tensor([uniform]).double(), state)
        state = choice.state
        found.append((int(bin_M[n]), choice.value_NJ[0].tolist()))
    assert sorted(found) == sorted(zip(bin_M.tolist(), choices.value_MJ.tolist(), strict=True))


def test_bins_hold_about_equally_many_choices_and_are_as_many_as_promised():
    choices, _ = choices_of(4096, 0, V=50)
    distinct = Choices(choices.value_MJ, torch.rand(4096), torch.rand(4096))
    size_B = Shuffle(SPACE, Every(1), distinct, binned=True).size_B
    assert len(size_B) == 32 and size_B.min() == size_B.max() == 128


@given(sizes, st.integers(0, 5), arrays(float, 7, elements=st.floats(0, 30)), st.integers(0, 9))
def test_places_that_were_never_seen_find_a_choice(m, seed, scale, other):
    """However certain the LM is, there is a choice of some place like it."""
    choices, _ = choices_of(m, seed)
    policy = Shuffle(SPACE, Every(1), choices, binned=True)
    logits_NV = torch.randn(7, 12, generator=torch.Generator().manual_seed(other)).double() * torch.tensor(scale).unsqueeze(-1)
    value_NJ = policy.choose(rows(logits_NV), torch.rand(7).double(), policy.start(7)).value_NJ
    known = as_multiset(choices.value_MJ)
    assert all(row in known for row in value_NJ.tolist())


def test_every_choice_is_equally_likely_at_every_token():
    choices = Choices(torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.5], [0.5, 0.9]]))
    policy, n = Shuffle(SPACE, Every(1), choices), 20_000
    state, draw = policy.start(n), torch.Generator().manual_seed(0)
    for _ in range(3):
        choice = policy.choose(rows(torch.zeros(n, 4)), torch.rand(n, generator=draw).double(), state)
        state = choice.state
        for value_J in choices.value_MJ:
            assert (choice.value_NJ == value_J).all(-1).double().mean().item() == pytest.approx(0.25, abs=0.02)


def test_at_a_higher_level_only_beginnings_of_segments_use_choices_up():
    choices = Choices(torch.arange(8.0).repeat(2, 1).T / 10)
    policy = Shuffle(SPACE, Every(3), choices)
    state, found = policy.start(1), []
    for position in range(24):
        choice = policy.choose(rows(torch.zeros(1, 4), position), torch.zeros(1).double(), state)
        state = choice.state
        found += [choice.value_NJ[0]] if position % 3 == 0 else []
    assert as_multiset(torch.stack(found)) == as_multiset(choices.value_MJ.double())
    assert Shuffle(SPACE, Every(1), choices).needs == ()


temperatures = st.lists(st.floats(0.05, 2), min_size=1, max_size=30)


@given(temperatures)
def test_the_mean_shift_keeps_the_mean_inverse_temperature(values):
    policy = MeanShift(KnobSpace.of("temperature"), Choices(torch.tensor(values).unsqueeze(-1)))
    assert 1 / policy.value_J.item() == pytest.approx(float(np.mean(1 / np.float32(values))), rel=1e-5)


@given(temperatures)
def test_with_a_temperature_of_0_and_of_other_knobs_it_keeps_the_mean_itself(values):
    both = torch.tensor([[0.0, 1.0], *([value, value / 2] for value in values)]).double()
    policy = MeanShift(SPACE, Choices(both))
    assert policy.value_J.tolist() == pytest.approx(both.mean(0).tolist())
    choice = policy.choose(rows(torch.zeros(3, 4)), torch.zeros(3).double())
    assert choice.value_NJ.tolist() == [policy.value_J.tolist()] * 3


@pytest.mark.parametrize(("ranks", "mean"), [([0, 0], 0), ([0, 5], 10), ([5, 20], 8)])
def test_a_top_k_that_keeps_all_counts_as_infinite(ranks, mean):
    choices = Choices(torch.tensor(ranks).double().unsqueeze(-1))
    assert MeanShift(KnobSpace.of("top_k"), choices).value_J.item() == mean


def test_the_mean_shift_says_what_it_is():
    assert MeanShift(SPACE, Choices(torch.tensor([[0.5, 0.9], [1.0, 1.0]]))).label == "temperature 0.667, top_p 0.95"


DOT = Delimiter(".", (3,))  # a token of the suite's texts


@pytest.mark.parametrize("segmenter", [Every(1), Every(2), WholeResponse(), DOT])
@pytest.mark.parametrize("binned", [False, True])
def test_shuffles_pass_the_suite(segmenter, binned):
    check_policy(Shuffle(SPACE, segmenter, choices_of(200, 0)[0], binned=binned))


def test_the_mean_shift_passes_the_suite():
    check_policy(MeanShift(SPACE, choices_of(20, 0)[0]))


def test_shuffles_of_other_choices_have_another_identity():
    one, other = choices_of(20, 0)[0], choices_of(20, 1)[0]
    policies = [Shuffle(SPACE, Every(1), one), Shuffle(SPACE, Every(1), other), Shuffle(SPACE, parse_level("sequence"), one)]
    policies += [Shuffle(SPACE, Every(1), one, binned=True), MeanShift(SPACE, one)]
    assert len({policy.identity() for policy in policies}) == len(policies)


def test_what_cannot_be_shuffled_is_refused():
    with pytest.raises(ConfigError, match="needs the entropy"):
        Shuffle(SPACE, Every(1), Choices(torch.zeros(3, 2)), binned=True)
    with pytest.raises(ConfigError, match=r"shape \(3, 1\) are not values of the 2 knobs"):
        MeanShift(SPACE, Choices(torch.zeros(3, 1)))
    with pytest.raises(ConfigError, match=r"shape \(0, 2\)"):
        Shuffle(SPACE, Every(1), Choices(torch.zeros(0, 2)))


def test_a_branch_chooses_once_and_then_goes_on():
    policy = Branch(SPACE, 3, 1)
    for position, option in ((0, 3), (1, 1), (7, 1)):
        choice = policy.choose(rows(torch.zeros(2, 4), position), torch.zeros(2).double())
        assert choice.value_NJ.tolist() == [SPACE.values_KJ()[option].tolist()] * 2
    check_policy(policy)
