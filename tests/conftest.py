"""Shared by all tests: quick, repeatable hypothesis settings, one thread, and tiny language models."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny_models import FAMILIES, tiny_lm

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    max_examples=40,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lms() -> dict[str, torch.nn.Module]:
    """One tiny LM per family. Whoever attaches to one must detach."""
    return {family: tiny_lm(family) for family in FAMILIES}


@pytest.fixture
def lm(lms: dict[str, torch.nn.Module]) -> torch.nn.Module:
    """The tiny Llama."""
    return lms["llama"]
