"""Policies: who chooses the knob values while decoding."""

from latentknobs.policies.base import ConstantPolicy, GreedyPolicy, HeadPolicy, Pick, Policy, UniformPolicy

__all__ = ["ConstantPolicy", "GreedyPolicy", "HeadPolicy", "Pick", "Policy", "UniformPolicy"]
