"""Tests of vLLM itself, collected where it is installed (`make check-vllm`). One process of pytest starts one vLLM."""

from importlib.metadata import packages_distributions

import pytest
import torch
from torch import Tensor
from vllm_cases import MODEL, TOKENIZER, prompts

from latentknobs.adapter import KnobAdapter, describe_model
from latentknobs.heads.base import Head
from latentknobs.heads.features import read_features, width
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every, parse_level
from latentknobs.heads.value_head import ValueHead
from latentknobs.knobs.space import KnobSpace

# not find_spec: these folders are a namespace package of the same name
collect_ignore_glob = [] if "vllm" in packages_distributions() else ["test_*.py"]
LEVELS = {"token": ("token", ("hidden",)), "sequence": ("sequence", ("hidden",)), "sentence": ("delimiter:.!?", ("hidden",)),
          "entropy": ("every:4", ("hidden", "entropy"))}  # fmt: skip


@pytest.fixture(scope="session")
def adapters() -> dict[str, KnobAdapter]:
    """Untrained heads with random weights, standardised on the LM's own features, so that all options occur."""
    ids = torch.tensor([row[:16] for row in prompts(40) if len(row) >= 16])
    with torch.no_grad():
        out = MODEL(ids, output_hidden_states=True)
    hidden_ND, logits_NV = out.hidden_states[-1].flatten(0, 1), out.logits.flatten(0, 1)
    found = {name: adapter_of(level, features, hidden_ND, logits_NV) for name, (level, features) in LEVELS.items()}
    space = KnobSpace.of({"temperature": [0.2, 1.4]}, {"top_p": [0.5, 1.0]})
    head = ValueHead(space, hidden_ND.shape[1], hidden=32, statistics=True)
    found["values"] = KnobAdapter(space, with_random(head, hidden_ND), Every(1), ("hidden",), describe_model(MODEL))
    return found


def adapter_of(level: str, features: tuple[str, ...], hidden_ND: Tensor, logits_NV: Tensor) -> KnobAdapter:
    """One with an option head."""
    space = KnobSpace.of({"temperature": [0.0, 0.5, 1.0, 1.3]}, {"min_p": [0.0, 0.05, 0.2]}, {"top_p": [0.8, 1.0]})
    feature_NF = read_features(features, hidden_ND, logits_NV)
    head = with_random(OptionHead(space, width(features, hidden_ND.shape[1]), 64), feature_NF)
    return KnobAdapter(space, head, parse_level(level, TOKENIZER), features, describe_model(MODEL))


def with_random(head: Head, feature_NF: Tensor) -> Head:
    """The head with random weights everywhere, and the features' own scale."""
    torch.manual_seed(0)
    head.fit_scaler(feature_NF.mean(0), feature_NF.std(0))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return head.eval()
