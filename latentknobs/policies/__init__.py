"""Policies: what chooses the knob values while decoding."""

from latentknobs.policies.base import Choice, Policy, State, reads, remembers
from latentknobs.policies.categorical import CategoricalPolicy, HeadPolicy, Pick
from latentknobs.policies.controls import Branch, Choices, MeanShift, Shuffle
from latentknobs.policies.fixed import BalancedPolicy, ConstantPolicy, GreedyPolicy, UniformPolicy

__all__ = [
    "BalancedPolicy", "Branch", "CategoricalPolicy", "Choice", "Choices", "ConstantPolicy", "GreedyPolicy", "HeadPolicy",
    "MeanShift", "Pick", "Policy", "Shuffle", "State", "UniformPolicy", "reads", "remembers",
]  # fmt: skip
