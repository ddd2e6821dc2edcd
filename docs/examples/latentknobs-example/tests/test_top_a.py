"""The conformance suite, and the formula on one row."""

import torch
from latentknobs_example.top_a import TopA

import latentknobs as lk
from latentknobs.testing import KnobConformance


class TestTopA(KnobConformance):
    knob = TopA()


def test_the_cut_is_a_times_the_square_of_the_best_probability():
    logits_NV = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept_NV = TopA().apply(logits_NV, torch.tensor([0.5])).isfinite()
    assert kept_NV.tolist() == [[True, True, True, False]]  # 0.5 * 0.5 ** 2 = 0.125


def test_the_name_is_known_once_the_package_is_installed():
    assert lk.KnobSpace.of("temperature", "top_a:0,0.2").K == 12
