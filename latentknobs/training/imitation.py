"""Before its first step a head may imitate a policy, such as a rule that was tuned by hand.

A head on policy finds what it happens to try, and settles there; from a rule it goes on where the rule ends.
"""

import torch
from torch import Tensor, nn

from latentknobs.config import TrainConfig
from latentknobs.data.columns import Column
from latentknobs.data.evidence import check_evidence
from latentknobs.data.segment_batches import FeatureCache, stride, widen
from latentknobs.engines.base import is_one_choice
from latentknobs.errors import ConfigError
from latentknobs.knobs.knob import Stage
from latentknobs.knobs.space import KnobSpace
from latentknobs.learners.base import Inputs, Learner
from latentknobs.models.sources import Sources
from latentknobs.policies import Policy
from latentknobs.policies.base import reads
from latentknobs.policies.names import policy_of
from latentknobs.training.fitstate import device_of

RESPONSES = 256  # show what the policy does
VALUES = {"value_NJ": Column(lambda reading: torch.tensor(reading.rollout.values, dtype=torch.float64), "first")}
"""What the policy that sampled a response chose at the beginning of its segments."""
OTHERS = 0.05  # probability that is left to each option (0.5 to all of them together), so that the steps after it still explore
UPDATES, BATCH, RATE, MOST = 500, 512, 1e-3, 50_000


def unscored(config: TrainConfig, learner: Learner) -> int:
    """Responses that a head on policy wants before its first step: for the scale of its features, and to imitate."""
    return config.pairs_per_step + (RESPONSES if learner.imitates is not None else 0)


def imitated(name: str, inputs: Inputs, sources: Sources) -> Policy:
    """The policy of a name; ConfigError or DataError if a head of these inputs cannot imitate it, or the engine not run it."""
    policy, asked = policy_of(name, sources.tokenizer), f"imitate={name!r}"
    theirs, ours = ({knob.name for knob in one.knobs} for one in (policy.space, inputs.space))
    if theirs != ours:
        raise ConfigError(
            f"{asked} chooses {', '.join(sorted(theirs))}, and the head chooses {', '.join(sorted(ours))}. Name a policy that "
            "chooses the knobs of the run."
        )
    if inputs.segmenter.level != "token" and not is_one_choice(policy):
        raise ConfigError(
            f"{asked} chooses at level {policy.segmenter.level!r}, and the head at level {inputs.segmenter.level!r}. Set "
            "level='token', or name a policy with one choice for a whole response, e.g. constant."
        )
    sources.engine.check(policy)
    check_evidence(sources.train, reads(policy))
    return policy


def nearest(value_NJ: Tensor, space: KnobSpace, name: str) -> Tensor:
    """(N,) the option that is nearest to some values, each knob by its own range; a value that cuts is nearest to one that cuts.

    ConfigError where a value lies outside of its grid.
    """
    option_KJ = torch.tensor([[*option.values()] for option in space.options], dtype=torch.float64)
    apart_NK = torch.zeros(len(value_NJ), space.K, dtype=torch.float64)
    for knob, value_N, option_K in zip(space.knobs, value_NJ.T, option_KJ.T, strict=True):
        low, high = float(option_K.min()), float(option_K.max())
        if len(outside := value_N[(value_N < low) | (value_N > high)]):
            raise ConfigError(
                f"imitate={name!r} chooses {knob.name}={outside[0]:g}, and the grid of the run reaches from {low:g} to {high:g}. "
                "Widen the grid, or name a policy that stays in it."
            )
        apart_NK += (value_N[:, None] - option_K).abs() / max(high - low, 1e-9)
        if knob.stage is not Stage.SCALE:  # to cut nothing is further from any cut than two cuts from each other: top-k 0 from 5
            apart_NK += (value_N == knob.neutral)[:, None] != (option_K == knob.neutral)
    return apart_NK.argmin(-1)


def imitate(module: nn.Module, cache: FeatureCache, option_N: Tensor, K: int, seed: int) -> None:
    """Moves a head towards the option `option_N` of each of N segments, one of K, by cross-entropy."""
    device, generator = device_of(module), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(module.parameters(), RATE)
    loss = nn.CrossEntropyLoss(label_smoothing=min(OTHERS * K, 0.5))
    for _ in range(UPDATES):
        row_B = torch.randint(len(option_N), (BATCH,), generator=generator)
        optimiser.zero_grad()
        loss(module(widen(cache.feature_NF[row_B]).to(device)), option_N[row_B].to(device)).backward()
        optimiser.step()


def thinned(cache: FeatureCache) -> FeatureCache:
    """At most some 50,000 segments of it, evenly spread; ConfigError if there are none."""
    total = len(cache.feature_NF)
    if not total:
        raise ConfigError(
            "No option of the grid can produce a response of the policy that imitate names. Widen the grid, or leave it out."
        )
    return cache.where(torch.arange(total) % stride(total, MOST) == 0)
