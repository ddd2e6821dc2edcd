"""Reading back, from finished responses alone, what a policy chose and how probable its tokens were.

Recomputing rather than logging means that extra forward passes, rejected drafts and chunked prompts never enter. Any engine that
can read responses will do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentknobs.engines.base import Ids
from latentknobs.engines.uniforms import OPTIONS, uniforms
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.apply import apply_values
from latentknobs.policies import Choice, Policy
from latentknobs.tensors import pick


@dataclass(frozen=True)
class Record:
    """What a policy did. T is the longest response; `mask_BT` marks real response tokens.

    Attributes:
        space: the knobs whose values were chosen; where there are options, indices refer to it.
        value_BTJ: the value of each knob at each token, in the space's order.
        option_BT: option of each token's segment; None for a policy that does not choose among options.
        segment_BT: segment ids.
        mask_BT: True at response tokens, the end-of-sequence token included.
        logps_BT: log-probability (nats) of each token under the distribution it was sampled from.
        log_kept_BT: log of the LM's own mass (at temperature 1) inside the kept set: with `logps_BT`, the two numbers
            that unbiased policy gradients under truncation need.
        log_pi_BTK: the policy's distribution over options at each position; None where there are no options.
        ignored: sampling arguments that the call of `generate` passed and that did not act (`sampling_arguments="override"`).
    """

    space: KnobSpace
    value_BTJ: Tensor
    segment_BT: Tensor
    mask_BT: Tensor
    logps_BT: Tensor
    log_kept_BT: Tensor
    option_BT: Tensor | None = None
    log_pi_BTK: Tensor | None = None
    ignored: tuple[str, ...] = ()

    def values(self) -> dict[str, Tensor]:
        """(B, T) the value of every knob at each token, by knob name."""
        return dict(zip(self.space.names, self.value_BTJ.unbind(-1), strict=True))


@torch.no_grad()
def record_of(
    policy: Policy, seed: int, prompts: Sequence[Ids], responses: Sequence[Ids], seen: Iterable[Observation], *,
    keys: Sequence[int] | None = None, ignored: tuple[str, ...] = (),
) -> Record:  # fmt: skip
    """The record of finished responses.

    Args:
        seed: of the `sample` or `generate` that made them.
        seen: what the policy saw at each token of each response (`Engine.observe`).
        keys: rows of the uniforms; None counts the responses.
        ignored: see `Record`.
    """
    rows = []
    for b, (prompt, response, observed) in enumerate(zip(prompts, responses, seen, strict=True)):
        ids_S = torch.tensor([prompt[-1], *response], device=observed.logits_NV.device)
        rows.append(_row(policy, seed, b if keys is None else keys[b], observed, ids_S))
    stacked = {key: torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True) for key in rows[0]}
    return Record(policy.space, **stacked, ignored=ignored)


def _row(policy: Policy, seed: int, key: int, seen: Observation, ids_S: Tensor) -> dict[str, Tensor]:
    """The fields of one response; `ids_S` are the last token of the prompt and the T of the response."""
    segment_T = policy.segmenter.segments(ids_S[:-1])
    choice, log_pi_TK = replay(policy, seed, key, seen, ids_S[1:])
    first_T = torch.searchsorted(segment_T, segment_T)  # index of each segment's first token
    value_TJ = choice.value_NJ.double()[first_T]
    warped_TV = apply_values(seen.logits_NV, policy.space, value_TJ, seen)
    kept_TV = seen.logits_NV.to(warped_TV.dtype).log_softmax(-1).masked_fill(warped_TV.isneginf(), -torch.inf)
    row = {
        "value_BTJ": value_TJ,
        "segment_BT": segment_T,
        "mask_BT": torch.ones_like(segment_T, dtype=torch.bool),
        "logps_BT": pick(warped_TV.log_softmax(-1), ids_S[1:]),
        "log_kept_BT": kept_TV.logsumexp(-1),
    }
    if choice.option_N is not None:
        row["option_BT"] = choice.option_N[first_T]
    if log_pi_TK is not None:
        row["log_pi_BTK"] = log_pi_TK
    return row


def replay(policy: Policy, seed: int, key: int, seen: Observation, token_T: Tensor) -> tuple[Choice, Tensor | None]:
    """What a policy would choose at each of T tokens if a segment began there, and its distribution over options."""
    position_T = torch.arange(len(token_T), device=token_T.device)
    uniform_T = uniforms(seed, OPTIONS, torch.full_like(position_T, key), position_T)
    state = policy.start(1, token_T.device)
    if state is None:
        return policy.choose(seen, uniform_T), policy.log_pi(seen)
    choices, log_pis = [], []
    for t in range(len(token_T)):
        one = slice(t, t + 1)
        log_pis.append(policy.log_pi(seen.rows(one), state))
        choices.append(policy.choose(seen.rows(one), uniform_T[one], state))
        state = state if choices[-1].state is None else choices[-1].state
        state = policy.observe(token_T[one], state)
    value_TJ = torch.cat([choice.value_NJ for choice in choices])
    options = [choice.option_N for choice in choices if choice.option_N is not None]
    known = [log_pi_1K for log_pi_1K in log_pis if log_pi_1K is not None]
    return Choice(value_TJ, torch.cat(options) if options else None), torch.cat(known) if known else None
