"""Learners: how scored responses become a policy."""
