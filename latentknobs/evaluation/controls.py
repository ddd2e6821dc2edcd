"""What controls are built from: the choices of a policy in finished responses, and how certain the LM was at each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.engines.base import Engine
from latentknobs.errors import ConfigError
from latentknobs.heads.features import read_features
from latentknobs.policies import Choices, Policy

MOST, TOGETHER = 512, 32  # responses that are read again, and how many in one pass


def choices_of(engine: Engine, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], policy: Policy) -> Choices:
    """One choice for each segment of some responses of a policy, at most 512 of them, evenly spread.

    Entropy and p_max are those of the LM itself, from one reading of the responses; without them where the engine cannot read.
    """
    some = [rollouts[n * len(rollouts) // min(len(rollouts), MOST)] for n in range(min(len(rollouts), MOST))]
    parts = []
    try:
        for start in range(0, len(some), TOGETHER):
            few = some[start : start + TOGETHER]
            read = engine.read([prompts[rollout.prompt].ids for rollout in few], [rollout.ids for rollout in few])
            for rollout, (hidden_TD, logits_TV) in zip(few, read, strict=True):
                start_S = segment_starts(prompts[rollout.prompt], rollout, policy).to(logits_TV.device)
                parts.append(read_features(["entropy", "max_prob"], hidden_TD[start_S], logits_TV[start_S]).cpu())
    except ConfigError:
        parts = []
    values = [torch.tensor(r.values, dtype=torch.float64)[segment_starts(prompts[r.prompt], r, policy)] for r in some]
    return Choices(torch.cat(values), *(torch.cat(parts).unbind(-1) if parts else ()))


def segment_starts(prompt: Prompt, rollout: Rollout, policy: Policy) -> Tensor:
    """(S,) the positions where segments begin."""
    previous_T = torch.tensor([prompt.ids[-1], *rollout.ids[:-1]])
    return policy.segmenter.begins(torch.arange(len(previous_T)), previous_T).nonzero().squeeze(-1)
