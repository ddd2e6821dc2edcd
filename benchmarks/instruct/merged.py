"""Several heads that choose among the same options as one head, whose log-probabilities are the mean of theirs.

Hidden layers stand side by side, so the merged head is exact, and an ordinary head n times as wide.
"""

from collections.abc import Sequence

import torch
from torch import nn

from latentknobs.heads.option_head import OptionHead
from latentknobs.knobs.space import KnobSpace


@torch.no_grad()
def merged(heads: Sequence[OptionHead], space: KnobSpace) -> OptionHead:
    """One head for some (at least one) of the same features, without reducing layers (`rank`) and budgets.

    (..., F) features give (..., K) log-probabilities: the mean of theirs, normalised.
    """
    first = heads[0]
    found = OptionHead(space, first.in_features, hidden=sum(head.hidden for head in heads), rank=0).to(first.shift_F.dtype)
    wide_H, inner_HH, out_K = (part for part in found.mlp if isinstance(part, nn.Linear))
    first_H, second_H, third_K = zip(*([part for part in head.mlp if isinstance(part, nn.Linear)] for head in heads), strict=True)
    # Each head standardises the features in its own way, so this goes into the first layer.
    weights = [layer.weight / head.scale_F for layer, head in zip(first_H, heads, strict=True)]
    wide_H.weight.copy_(torch.cat(weights))
    wide_H.bias.copy_(torch.cat([layer.bias - w @ head.shift_F for layer, w, head in zip(first_H, weights, heads, strict=True)]))
    inner_HH.weight.copy_(torch.block_diag(*(layer.weight for layer in second_H)))
    inner_HH.bias.copy_(torch.cat([layer.bias for layer in second_H]))
    out_K.weight.copy_(torch.cat([layer.weight for layer in third_K], 1) / len(heads))
    out_K.bias.copy_(torch.stack([layer.bias for layer in third_K]).mean(0))
    return found.eval()
