"""REINFORCE (arXiv 2603.09065): estimators of the policy gradient, their baselines, and budgets."""

from latentknobs.learners.reinforce.advantages import baselined, group_rewards, values, varies
from latentknobs.learners.reinforce.estimators import marginal_logps, policy_loss, score_logps, surrogate
from latentknobs.learners.reinforce.settings import Baseline, Estimator, Group, Settings

__all__ = [
    "Baseline", "Estimator", "Group", "Settings", "baselined", "group_rewards", "marginal_logps", "policy_loss", "score_logps",
    "surrogate", "values", "varies",
]  # fmt: skip
