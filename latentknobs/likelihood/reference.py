"""The slow, obvious likelihoods: one knob chain per option, a few rows at a time.

Deliberately ignores every identity between options. It defines the options; every faster path must agree with it.
"""

import torch
from torch import Tensor

from latentknobs.errors import LogitsError
from latentknobs.knobs.context import Context
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.rows import checked
from latentknobs.tensors import any_or_unknown, host_sees, pick

ROWS = 256  # rows of logits in work at once: bounds memory at a few copies of (ROWS, V), whatever N and K are


def apply_values(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor, context: Context | None = None) -> Tensor:
    """(N, V) logits after the knob chain, float32 or wider, -inf outside the kept set. Arguments: see `apply.apply_values`."""
    out_NV = checked(logits_NV)
    value_NJ = value_NJ.to(out_NV)
    for j, knob in enumerate(space.knobs):
        if any_or_unknown(value_NJ[:, j] != knob.neutral):
            out_NV = knob.apply_in(out_NV, value_NJ[:, j], context)
    return out_NV


def apply_options(logits_NV: Tensor, space: KnobSpace, option_N: Tensor, context: Context | None = None) -> Tensor:
    """(N, V) logits of the distribution that option `option_N[n]` really samples from."""
    return apply_values(logits_NV, space, values_of(space, option_N, logits_NV.device), context)


def values_of(space: KnobSpace, option_N: Tensor, device: torch.device) -> Tensor:
    """(N, J) the values of options; LogitsError if one is not of the space."""
    if host_sees(option_N) and bool((is_bad_N := (option_N < 0) | (option_N >= space.K)).any()):
        raise LogitsError(
            f"Option {int(option_N[is_bad_N][0])} is not one of the {space.K} of {space!r}. They count from 0 to {space.K - 1}."
        )
    return space.values_KJ(device=device)[option_N]


def option_logps(logits_NV: Tensor, targets_N: Tensor, space: KnobSpace, context: Context | None = None) -> Tensor:
    """(N, K) log P(target | option) in nats, -inf where the option removes the target. Arguments: see `table.option_logps`."""
    with torch.no_grad():
        chunks = [
            _chunk(logits_NV[rows], targets_N[rows], space, context.rows(rows) if context else None)
            for rows in (slice(start, start + ROWS) for start in range(0, len(logits_NV), ROWS))
        ]
    if not chunks:
        return logits_NV.new_zeros(0, space.K, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
    return torch.cat(chunks)


def _chunk(logits_RV: Tensor, target_R: Tensor, space: KnobSpace, context: Context | None) -> Tensor:
    columns = []
    for k in range(space.K):
        option_R = torch.full_like(target_R, k)
        logp_RV = apply_options(logits_RV, space, option_R, context).log_softmax(-1)
        columns.append(pick(logp_RV, target_R))
    return torch.stack(columns, -1)
