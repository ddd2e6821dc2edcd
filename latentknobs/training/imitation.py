"""Before its first step a head may imitate a policy, such as a rule that was tuned by hand.

A head on policy finds what it happens to try, and settles there; from a rule it goes on where the rule ends.
"""

from typing import Any

import torch
from torch import nn

from latentknobs.data.columns import Column
from latentknobs.data.segment_batches import FeatureCache, widen
from latentknobs.errors import ConfigError
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import Policy
from latentknobs.policies.names import policy_of
from latentknobs.training.fitstate import device_of

VALUES = {"value_NJ": Column(lambda reading: torch.tensor(reading.rollout.values, dtype=torch.float64), "first")}
"""What the policy that sampled a response chose for its segments."""
OTHERS = 0.05  # what each other option keeps, so that the steps after it still explore
UPDATES, BATCH, RATE = 500, 512, 1e-3


def imitated(name: str, space: KnobSpace, tokenizer: Any) -> Policy:
    """The policy of a name; ConfigError if it does not choose the knobs of the space."""
    policy = policy_of(name, tokenizer)
    theirs, ours = ([knob.name for knob in one.knobs] for one in (policy.space, space))
    if theirs != ours:
        raise ConfigError(
            f"imitate={name!r} chooses {', '.join(theirs)}, and the head chooses {', '.join(ours)}. Name a policy that chooses "
            "the knobs of the run, in their order."
        )
    return policy


def imitate(module: nn.Module, cache: FeatureCache, space: KnobSpace, seed: int) -> None:
    """Moves a head towards the options that are nearest to the values of some segments, by cross-entropy."""
    device, generator = device_of(module), torch.Generator().manual_seed(seed)
    value_KJ = torch.tensor([[*option.values()] for option in space.options], dtype=torch.float64)
    option_N = torch.cdist(cache.columns["value_NJ"], value_KJ).argmin(-1).to(device)
    optimiser = torch.optim.Adam(module.parameters(), RATE)
    loss = nn.CrossEntropyLoss(label_smoothing=min(OTHERS * space.K, 0.5))
    for _ in range(UPDATES):
        row_B = torch.randint(len(option_N), (BATCH,), generator=generator)
        optimiser.zero_grad()
        loss(module(widen(cache.feature_NF[row_B]).to(device)), option_N[row_B.to(device)]).backward()
        optimiser.step()
