"""Batches of examples: each response once, in its places, as often as it is in them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_cases import make_cache

from latentknobs.data.examples import Batch, Example, drop_unreachable
from latentknobs.errors import NoExamplesError

CACHE = make_cache(3, [2, 0, 3, 1, 4])


@given(st.integers(1, 3).flatmap(lambda X: st.lists(st.tuples(*[st.integers(0, 4)] * X), min_size=1, max_size=6)))
def test_a_batch_reads_each_response_once_and_knows_its_places(responses):
    examples = [Example(0, own, weight=n / 3) for n, own in enumerate(responses)]
    batch = Batch.read(CACHE, examples, "cpu")
    different = sorted({r for own in responses for r in own})
    assert torch.equal(batch.segments.feature_MF, CACHE.segments(torch.tensor(different)).feature_MF)
    assert [tuple(different[place] for place in own) for own in batch.place_XB.T.tolist()] == responses
    assert batch.weight_B.tolist() == [n / 3 for n in range(len(responses))]
    every = [r for own in responses for r in own]
    expected = [every.count(r) for r in different for _ in range(int(CACHE.start_R1[r + 1] - CACHE.start_R1[r]))]
    assert batch.times_M.tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1), st.sets(st.integers(0, 9)))
def test_exactly_the_examples_without_unreachable_responses_stay(sides, unreachable):
    examples = [Example(0, own) for own in sides]
    good = [example for example in examples if not set(example.responses) & unreachable]
    if not good:
        with pytest.raises(NoExamplesError, match=rf"Each of the {len(examples)} examples .*floor=-20"):
            drop_unreachable(examples, unreachable)
        return
    kept, sentence = drop_unreachable(examples, unreachable)
    assert kept == good
    assert (f"{len(examples) - len(good)} of {len(examples)} examples are left out" in sentence) == (len(good) < len(examples))
    assert sentence.endswith(".")
