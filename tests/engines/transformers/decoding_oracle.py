"""What attached decoding should have done, worked out slowly: one row, one token, one plain forward pass at a time."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
from tiny_models import STOPS
from torch import Tensor

from latentknobs import Context, KnobSpace, apply_options
from latentknobs.engines.uniforms import uniforms
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.policies import HeadPolicy

SPACE = KnobSpace.of({"temperature": [0.0, 0.6, 1.5], "top_p": [0.7, 1.0]})
PROMPTS = [[5, 9, 7], [4], [11, 3, 17, 8, 6]]
CUTS = (4, 7, 9, 11, 15, 20)  # the "full stops" of the delimiter level
LEVELS = ("token", "sequence", "every:3", "delimiter:.")
SEED = 11


def policy_for(model: Any, level: str, pick: str, space: KnobSpace = SPACE, seed: int = 0) -> HeadPolicy:
    """A random head that tells positions apart, so that a wrong hidden state shows."""
    torch.manual_seed(seed)
    head = OptionHead(space, model.config.hidden_size, hidden=16)
    torch.nn.init.normal_(head.mlp[0].weight, std=0.5)
    torch.nn.init.normal_(head.mlp[-1].weight, std=1.5)
    return HeadPolicy(head, space, parse_level(level, token_ids=CUTS), pick=pick)


def left_padded(prompts: Seq[Seq[int]] = PROMPTS) -> dict[str, Tensor]:
    """Inputs of `generate`, padded with token 0 on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def responses_of(sequences_BL: Tensor, prompt_length: int) -> list[list[int]]:
    """Response ids up to and with the first end-of-sequence token."""
    rows = sequences_BL[:, prompt_length:].tolist()
    ends = [next((t + 1 for t, token in enumerate(row) if token in STOPS), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@dataclass(frozen=True)
class Step:
    """One token of one row."""

    option: int
    segment: int
    log_pi_K: Tensor
    lm_logp_V: Tensor
    logp_V: Tensor  # what the token is sampled from
    context: Context | None = None


def begins(level: str, t: int, previous: int) -> bool:
    if t == 0 or level == "token":
        return True
    if level.startswith("every:"):
        return t % int(level.split(":")[1]) == 0
    return level.startswith("delimiter") and previous in CUTS


@torch.no_grad()
def steps(
    model: Any, policy: HeadPolicy, row: int, prompt: Seq[int], response: Seq[int], seed: int = SEED,
    second: Seq[int] | None = None,
) -> list[Step]:  # fmt: skip
    """The steps by which `response` was written in row `row`, recomputed without padding, cache or hooks.

    Args:
        second: the prompt without evidence.
    """
    assert not hasattr(model, "_latentknobs"), "the oracle needs the bare model"
    done: list[Step] = []
    for t in range(len(response)):
        ids_1L = torch.tensor([[*prompt, *response[:t]]])
        hidden_1D = model.base_model(input_ids=ids_1L).last_hidden_state[:, -1]
        logits_1V = model(input_ids=ids_1L).logits[:, -1]
        log_pi_K = policy.log_pi(Context(hidden_ND=hidden_1D, logits_NV=logits_1V))[0]
        if begins(policy.segmenter.level, t, int(ids_1L[0, -1])):
            option, segment = pick(policy, log_pi_K, seed, row, t), done[-1].segment + 1 if done else 0
        else:
            option, segment = done[-1].option, done[-1].segment
        context = seen(model, prompt, response[:t], second) if policy.space.needs else None
        warped_1V = apply_options(logits_1V, policy.space, torch.tensor([option]), context)
        done.append(Step(option, segment, log_pi_K, logits_1V.log_softmax(-1)[0], warped_1V.log_softmax(-1)[0], context))
    return done


def seen(model: Any, prompt: Seq[int], before: Seq[int], second: Seq[int] | None = None) -> Context:
    """What knobs may read of the token after `before`: second logits follow `second`, or the prompt's last token alone."""
    second_1V = model(input_ids=torch.tensor([[*(second or prompt[-1:]), *before]])).logits[:, -1]
    return Context(previous_NL=torch.tensor([[*prompt, *before]]), position_N=torch.tensor([len(before)]), second_NV=second_1V)


def pick(policy: HeadPolicy, log_pi_K: Tensor, seed: int, row: int, t: int) -> int:
    if policy.pick == "greedy":
        return int(log_pi_K.argmax())
    uniform = uniforms(seed, 0, torch.tensor([row]), torch.tensor([t])).item()
    total = 0.0
    for k, p in enumerate(log_pi_K.double().exp().tolist()):
        total += p
        if uniform < total:
            return k
    return len(log_pi_K) - 1
