"""Policies: who chooses the knob values while decoding."""

from latentknobs.policies.base import BalancedPolicy, ConstantPolicy, GreedyPolicy, HeadPolicy, Pick, Policy, UniformPolicy

__all__ = ["BalancedPolicy", "ConstantPolicy", "GreedyPolicy", "HeadPolicy", "Pick", "Policy", "UniformPolicy"]
