"""A model's output projection with everything its family does to the logits afterwards."""

from typing import Any

import torch
from torch import Tensor

from latentknobs.engines.transformers.frozen import output_embeddings, tapped
from latentknobs.errors import AdapterError
from latentknobs.likelihood.hidden import Projection


@torch.no_grad()
def projection_of(model: Any) -> Projection:
    """The projection from hidden states to logits, checked against the model's own logits on one prompt.

    Knows the soft cap of Gemma 2, the multiplier of Cohere and the divisor of Granite, all by their config's names.

    Raises:
        AdapterError: the model does something else to its logits.
    """
    config, head = model.config.get_text_config(), output_embeddings(model)
    cap = getattr(config, "final_logit_softcapping", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)

    def rescale(logits: Tensor) -> Tensor:
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    assert isinstance(head.weight, Tensor)
    bias_V = getattr(head, "bias", None)
    projection = Projection(head.weight.detach(), None if bias_V is None else bias_V.detach(), rescale)
    with tapped(model) as cell:
        logits_BSV = model(input_ids=torch.arange(1, 3, device=head.weight.device).unsqueeze(0), use_cache=False).logits
    mine_SV = projection.logits(cell["hidden"][0])
    if not torch.allclose(mine_SV.float(), logits_BSV[0].float(), atol=1e-3, rtol=1e-3):
        raise AdapterError(
            f"{type(model).__name__} does something to its logits that latentknobs does not know, so tables cannot be made from "
            "hidden states. Make them from its logits, with option_logps."
        )
    return projection
