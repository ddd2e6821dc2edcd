"""Continuous batching (`generate_batch`): requests packed into one row, whose tokens are each chosen for by themselves.

Which request a token belongs to is not said, so tokens cannot be compared one by one with what was chosen: a batch is held to its
policy by the number of choices.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentknobs.engines.transformers.modes import carried, carries_nothing
from latentknobs.engines.transformers.step import Stepper, lowered
from latentknobs.engines.transformers.verify import not_of_policy
from latentknobs.errors import DecodingError
from latentknobs.knobs.context import Observation
from latentknobs.likelihood.apply import apply_values
from latentknobs.policies import Policy, reads


def is_packed(kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments of a forward call are those of continuous batching."""
    return "cu_seq_lens_q" in kwargs and "cache" in kwargs


def packed_logits(stepper: Stepper, hidden_1SD: Tensor, logits_1SV: Tensor) -> Tensor:
    """(1, S, V) logits of the chosen values, for every token of a packed row."""
    seen = Observation(hidden_ND=hidden_1SD[0, -logits_1SV.shape[1] :], logits_NV=logits_1SV[0])
    choice = stepper.choose(seen, torch.zeros(len(seen.logits_NV), dtype=torch.float64), True, None, None)
    return lowered(apply_values(seen.logits_NV, stepper.policy.space, choice.value_NJ), seen.logits_NV).unsqueeze(0)


def check_batch(results: Mapping[str, Any], choices: int) -> None:
    """DecodingError if `generate_batch` returned more tokens than there were choices."""
    tokens = sum(len(result.generated_tokens) for result in results.values())
    if choices < tokens:
        raise not_of_policy(f"generate_batch returned {tokens} new tokens, and the attached policy chose for {choices}")


def refuse_batching(policy: Policy) -> None:
    """DecodingError if a policy must know whose token it chooses for: continuous batching packs requests and does not say."""
    why = None
    if needs := reads(policy):
        why = f"it cannot supply {', '.join(needs)}, which {policy.space!r} reads. Use generate, or leave that knob out."
    elif not carries_nothing(policy):
        why = f"it cannot carry {carried(policy)}. Use generate, or an adapter of level 'token'."
    elif policy.draws:
        why = "options cannot be drawn by seed, row and position. Use generate, or a policy with pick='greedy'."
    if why is not None:
        raise DecodingError(f"Continuous batching (generate_batch) does not tell which request a token belongs to, so {why}")
