"""Engines: how a policy runs on a model."""
