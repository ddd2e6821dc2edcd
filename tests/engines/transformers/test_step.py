"""A policy's step: which rows begin a segment."""

import pytest
import torch

import latentknobs as lk
from latentknobs.heads.segmenters import parse_level
from latentknobs.policies import ConstantPolicy, UniformPolicy

SIX = lk.KnobSpace.of("temperature")


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
