"""Prompts, rollouts, preferences, and the store of what learners are trained on."""
