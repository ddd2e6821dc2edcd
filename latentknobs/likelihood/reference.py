"""The slow, obvious likelihoods: one knob chain per option, a few rows at a time.

Deliberately ignores every identity between options. It defines what the options mean; anything faster must agree.
"""

import torch
from torch import Tensor

from latentknobs.space import KnobSpace

ROWS = 256  # rows of logits in work at once: bounds memory at a few copies of (ROWS, V), whatever N and K are


def apply_values(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor) -> Tensor:
    """Logits after the knob chain, with its own values in each row.

    Args:
        logits_NV: (N, V) unnormalised log-probabilities of any floating dtype.
        value_NJ: (N, J) one value per row and knob, in the space's order.

    Returns:
        (N, V) logits, float32 or wider; -inf outside the kept set.
    """
    out_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    value_NJ = value_NJ.to(out_NV)
    for j, knob in enumerate(space.knobs):
        if (value_NJ[:, j] != knob.neutral).any():
            out_NV = knob.apply(out_NV, value_NJ[:, j])
    return out_NV


def apply_options(logits_NV: Tensor, space: KnobSpace, option_N: Tensor) -> Tensor:
    """Logits of the distribution that option `option_N[n]` really samples from, (N, V)."""
    return apply_values(logits_NV, space, space.values_KJ(device=logits_NV.device)[option_N])


def option_logps(logits_NV: Tensor, targets_N: Tensor, space: KnobSpace) -> Tensor:
    """log P(target | option) of every row under every option.

    Args:
        logits_NV: (N, V) the frozen LM's logits; no gradient is kept.
        targets_N: (N,) token ids.

    Returns:
        (N, K) nats, float32 or wider; -inf where the option removes the target.
    """
    with torch.no_grad():
        chunks = [
            _chunk(logits_RV, target_R, space)
            for logits_RV, target_R in zip(logits_NV.split(ROWS), targets_N.split(ROWS), strict=True)
        ]
    return torch.cat(chunks) if chunks else logits_NV.new_zeros(0, space.K)


def _chunk(logits_RV: Tensor, target_R: Tensor, space: KnobSpace) -> Tensor:
    columns = []
    for k in range(space.K):
        option_R = torch.full_like(target_R, k)
        logp_RV = apply_options(logits_RV, space, option_R).log_softmax(-1)
        columns.append(logp_RV.gather(-1, target_R.unsqueeze(-1)))
    return torch.cat(columns, -1)
