"""REINFORCE (arXiv 2603.09065): estimators of the policy gradient, their baselines, and budgets."""
