"""Reading back, from the final token ids alone, which options a policy chose and how probable its tokens were.

Recomputing rather than logging means that extra forward passes, rejected drafts and chunked prompts never enter.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.engines.transformers.modes import needs_of
from latentknobs.engines.transformers.second import read_contexts
from latentknobs.engines.transformers.uniforms import uniforms
from latentknobs.knobs.context import Context
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood import apply_options
from latentknobs.policies import Policy
from latentknobs.tensors import pick


@dataclass(frozen=True)
class Record:
    """What a policy did. T is the longest response; `mask_BT` marks real response tokens.

    Attributes:
        space: the options that indices refer to.
        option_BT: option of each token's segment.
        segment_BT: segment ids.
        mask_BT: True at response tokens, the end-of-sequence token included.
        logps_BT: log-probability (nats) of each token under the distribution it was sampled from.
        log_kept_BT: log of the LM's own mass (at temperature 1) inside the kept set: with `logps_BT`, the two numbers
            that unbiased policy gradients under truncation need.
        log_pi_BTK: the policy's distribution over options at each position.
    """

    space: KnobSpace
    option_BT: Tensor
    segment_BT: Tensor
    mask_BT: Tensor
    logps_BT: Tensor
    log_kept_BT: Tensor
    log_pi_BTK: Tensor

    def values(self) -> dict[str, Tensor]:
        """(B, T) the value of every knob at each token, by knob name."""
        value_BTJ = self.space.values_KJ(device=self.option_BT.device)[self.option_BT]
        return {name: value_BTJ[..., j] for j, name in enumerate(self.space.names)}


@torch.no_grad()
def read_record(
    model: Any,
    policy: Policy,
    seed: int,
    sequences_BL: Tensor,
    prompt_length: int,
    attention_mask_BP: Tensor | None = None,
    rows_B: Tensor | None = None,
) -> Record:
    """The record of finished sequences. See `Attached.record` for the arguments; `rows_B` are keys of the uniforms."""
    prompts, responses = split_sequences(model, sequences_BL, prompt_length, attention_mask_BP)
    rows: list[dict[str, Tensor]] = []
    contexts = read_contexts(model, prompts, responses, needs_of(policy))
    for b, ((hidden_TD, logits_TV), context) in enumerate(zip(read_responses(model, prompts, responses), contexts, strict=True)):
        previous_T = torch.tensor([prompts[b][-1], *responses[b][:-1]], device=logits_TV.device)
        segment_T = policy.segmenter.segments(previous_T.unsqueeze(0)).squeeze(0)
        key = b if rows_B is None else int(rows_B[b])
        rows.append(_row(policy, seed, key, hidden_TD, logits_TV, segment_T, responses[b], context))
    stacked = {key: torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True) for key in rows[0]}
    return Record(policy.space, **stacked)


def _row(
    policy: Policy,
    seed: int,
    key: int,
    hidden_TD: Tensor,
    logits_TV: Tensor,
    segment_T: Tensor,
    response: list[int],
    context: Context | None,
) -> dict[str, Tensor]:
    position_T = torch.arange(len(response), device=logits_TV.device)
    log_pi_TK = policy.log_pi(hidden_TD, logits_TV)
    drawn_T = policy.choose(log_pi_TK, uniforms(seed, 0, torch.full_like(position_T, key), position_T))
    first_T = torch.searchsorted(segment_T, segment_T)  # index of each segment's first token
    option_T = drawn_T[first_T]
    warped_TV = policy_logits(policy, logits_TV, option_T, context)
    token_T = torch.tensor(response, device=logits_TV.device)
    kept_TV = logits_TV.to(warped_TV.dtype).log_softmax(-1).masked_fill(warped_TV.isneginf(), -torch.inf)
    return {
        "option_BT": option_T,
        "segment_BT": segment_T,
        "mask_BT": torch.ones_like(option_T, dtype=torch.bool),
        "logps_BT": pick(warped_TV.log_softmax(-1), token_T),
        "log_kept_BT": kept_TV.logsumexp(-1),
        "log_pi_BTK": log_pi_TK,
    }


def policy_logits(policy: Policy, logits_NV: Tensor, option_N: Tensor, context: Context | None) -> Tensor:
    """(N, V) logits that a policy's options sample from, where knobs may read a context."""
    if context is not None and needs_of(policy):
        return apply_options(logits_NV, policy.space, option_N, context)
    return policy.warp(logits_NV, option_N)


def stop_ids(model: Any) -> list[int]:
    """The tokens that end a response."""
    ends = model.generation_config.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]


def split_sequences(
    model: Any, sequences_BL: Tensor, prompt_length: int, attention_mask_BP: Tensor | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt ids without padding, and response ids up to and with the end-of-sequence token."""
    stop = set(stop_ids(model))
    prompts, responses = [], []
    for b, row in enumerate(sequences_BL.tolist()):
        keep = [True] * prompt_length if attention_mask_BP is None else attention_mask_BP[b].bool().tolist()
        prompts.append([token for token, real in zip(row[:prompt_length], keep, strict=True) if real])
        response = row[prompt_length:]
        end = next((t + 1 for t, token in enumerate(response) if token in stop), len(response))
        responses.append(response[:end])
    return prompts, responses
