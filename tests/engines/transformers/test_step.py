"""A policy's step: which rows begin a segment, and uniforms made ahead."""

import pytest
import torch

import latentknobs as lk
from latentknobs.engines.transformers.ledger import AHEAD, Ledger
from latentknobs.engines.uniforms import OPTIONS, TOKENS, uniforms
from latentknobs.heads.segmenters import Every, parse_level
from latentknobs.policies import ConstantPolicy, UniformPolicy

SIX = lk.KnobSpace.of("temperature")


def test_uniforms_made_ahead_are_those_of_each_position() -> None:
    ledger = Ledger(UniformPolicy(SIX, Every(1)), 3, keys_B=torch.tensor([9, 2]))
    for position in (0, 1, AHEAD - 1, AHEAD, 2, 5 * AHEAD + 7):
        found_2B = ledger.uniforms(11, position, 2, torch.device("cpu"))
        expected = [uniforms(11, stream, torch.tensor([9, 2]), torch.full((2,), position)) for stream in (OPTIONS, TOKENS)]
        assert torch.equal(found_2B, torch.stack(expected))
    assert not torch.equal(ledger.uniforms(12, 0, 2, torch.device("cpu")), ledger.uniforms(11, 0, 2, torch.device("cpu")))


@pytest.mark.parametrize("level", ["token", "every:3", "sequence", "delimiter:."])
def test_the_host_knows_where_segments_begin(level: str) -> None:
    policy = UniformPolicy(SIX, parse_level(level, token_ids=(4,)))
    for position in range(7):
        for previous_B in (torch.tensor([4, 5]), torch.tensor([5, 5])):
            begins_B = policy.segmenter.begins(torch.full((2, 1), position), previous_B.unsqueeze(1)).squeeze(1)
            told = policy.segmenter.at(position, previous_B)
            assert (begins_B == told).all()
            assert isinstance(told, bool) or (told.any() and level.startswith("delimiter"))
    assert ConstantPolicy(SIX, 2).segmenter.at(5, torch.tensor([5])) is True, "no state to carry"
