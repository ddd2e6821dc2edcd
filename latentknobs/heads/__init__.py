"""Heads: what they read, where a choice is made, and the network that chooses."""
