"""The output projection of every family, with what it does to its logits afterwards."""

from typing import Any

import pytest
import torch
from test_modes_families import FAMILIES, model_of
from torch import Tensor, nn

from latentknobs.engines.transformers.frozen import tapped
from latentknobs.engines.transformers.projection import projection_of
from latentknobs.errors import AdapterError


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_projections_give_the_models_own_logits(family: str) -> None:
    model: Any = model_of(family)
    with torch.no_grad(), tapped(model) as cell:
        logits_BSV = model(input_ids=torch.tensor([[5, 9, 7, 3]])).logits
    assert torch.allclose(projection_of(model).logits(cell["hidden"]), logits_BSV, atol=1e-5)


def test_a_family_that_does_something_else_is_refused() -> None:
    model: Any = model_of("llama")

    def squared(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return out.square()

    model.get_output_embeddings().register_forward_hook(squared)
    with pytest.raises(AdapterError, match="LlamaForCausalLM does something to its logits"):
        projection_of(model)
