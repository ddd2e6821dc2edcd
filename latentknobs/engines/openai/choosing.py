"""The choice of a policy for a whole response, from a reading of its prompt in this process."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from latentknobs.engines.base import Ids, observe
from latentknobs.engines.uniforms import OPTIONS, uniforms
from latentknobs.knobs.context import Observation
from latentknobs.policies import Choice, ConstantPolicy, Policy, UniformPolicy, reads

TOGETHER = 64  # prompts in one forward pass
Read = Callable[[Sequence[Ids], Sequence[Ids]], Iterator[tuple[Tensor, Tensor]]]


def reads_nothing(policy: Policy) -> bool:
    """Whether a policy chooses without looking at the model."""
    return isinstance(policy, ConstantPolicy | UniformPolicy)


def choose(
    read: Read | None, policy: Policy, prompts: Sequence[Ids], rows: Sequence[int], *, seed: int, max_new_tokens: int | None,
    samples: int = 1, second_prompts: Sequence[Ids] | None = None,
) -> list[Choice]:  # fmt: skip
    """What a policy chooses for the first token of a response to each prompt; equal prompts are read once.

    `read` is that of an engine (None if the policy reads nothing); `rows` are those of the uniforms.
    """
    if read is None or reads_nothing(policy):
        blind = Observation(logits_NV=torch.zeros(1, 1))
        return [_choice(policy, blind, seed, row) for row in rows]
    pairs = list(zip(map(tuple, prompts), map(tuple, second_prompts or [prompt[-1:] for prompt in prompts]), strict=True))
    unique, seen = list(dict.fromkeys(pairs)), dict[tuple[Ids, Ids], Observation]()
    for start in range(0, len(unique), TOGETHER):
        part = unique[start : start + TOGETHER]
        firsts, seconds = zip(*part, strict=True)
        next_token = [[0]] * len(part)  # the logits before it are what counts
        found = observe(
            read, firsts, next_token, reads(policy), max_new_tokens=max_new_tokens, samples=samples, second_prompts=seconds
        )
        seen |= dict(zip(part, found, strict=True))
    return [_choice(policy, seen[pair], seed, row) for pair, row in zip(pairs, rows, strict=True)]


def _choice(policy: Policy, seen: Observation, seed: int, row: int) -> Choice:
    device = seen.logits_NV.device
    row_1, position_1 = torch.tensor([row], device=device), torch.zeros(1, dtype=torch.long, device=device)
    return policy.choose(seen, uniforms(seed, OPTIONS, row_1, position_1), policy.start(1, device))
