"""The conformance suite, the weights, and the loss on one response."""

import pytest
import torch
from latentknobs_example.rwr import RewardWeightedRegression, Settings

import latentknobs as lk
from latentknobs.data.rollouts import Rollout
from latentknobs.data.segment_batches import Segments
from latentknobs.heads.segmenters import parse_level
from latentknobs.learners import Batch, Inputs
from latentknobs.testing import LearnerConformance

INPUTS = Inputs(lk.KnobSpace.of("temperature:0.5,1"), parse_level("token"), ("entropy",))


class TestRWR(LearnerConformance):
    learner = RewardWeightedRegression


def test_weights_are_a_softmax_of_advantages_within_a_prompt():
    rollouts = [Rollout(prompt, (5,), (0,), "") for prompt in (0, 0, 1, 1)]
    learner = RewardWeightedRegression(Settings(temperature=2.0), INPUTS)
    found = learner.examples(rollouts, [1.0, 3.0, None, 4.0])
    assert [example.responses for example in found] == [(0,), (1,), (3,)]
    expected = 2 * torch.tensor([0.0, 1.0]).softmax(-1)
    assert [example.weight for example in found] == pytest.approx([*expected.tolist(), 1.0])


def test_the_loss_is_the_weighted_log_marginal_written_out():
    logps_MK = torch.tensor([[0.5, 0.1], [0.2, 0.4]]).log()
    batch = Batch(
        Segments(torch.zeros(2, 1), {"logps_NK": logps_MK}, torch.tensor([2])), torch.tensor([[0]]), torch.tensor([3.0])
    )
    learner = RewardWeightedRegression(Settings(), INPUTS)
    uniform = learner.module(torch.zeros(1), torch.ones(1))
    expected = -3.0 * (torch.tensor(0.3).log() + torch.tensor(0.3).log())
    torch.testing.assert_close(learner.loss(uniform, batch, None).each_B, expected.unsqueeze(0))
