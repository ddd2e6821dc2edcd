"""The last choice of a run: an adapter holds the head, or something simpler that did better on dev prompts.

Adapting must not lose. Candidates are the head; the head sharpened towards the best constant, so that it departs from it only
where it is surer than in half of the places where it did; the constant at the mean of its choices; and the best constant. They
answer the dev prompts with random numbers of their own, so that no candidate profits from the luck by which a constant was tuned.
No evaluation prompt takes part.
"""

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from latentknobs.adapter import KnobAdapter
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.engines.base import Engine
from latentknobs.errors import LatentKnobsError
from latentknobs.evaluation.controls import segment_starts
from latentknobs.evaluation.report import Floats
from latentknobs.evaluation.statistics import estimate
from latentknobs.heads.option_head import OptionHead, OptionShape
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import MeanShift, Policy, reads
from latentknobs.tensors import pick

HEAD, SHARPENED, MEAN, CONSTANT = "trained head", "sharpened head", "mean of the head's choices", "best constant"
CANDIDATES = 4
MOST = 64  # responses that the strength of sharpening is read off
SURE, NEVER = 50.0, 1e4  # nats: of an option that is always taken, and of one that never is


def candidates(
    adapter: KnobAdapter, option: int, best: Sequence[float], mean: MeanShift, margin: float | None
) -> dict[str, KnobAdapter]:  # fmt: skip
    """What the adapter may hold, the head first.

    Args:
        option: the best constant of the space.
        best: values of the best constant at all.
        mean: of the head's choices.
        margin: see `sharpened`; None leaves the sharpened head out.
    """
    found = {HEAD: adapter}
    if margin is not None:
        assert isinstance(adapter.head, OptionHead)
        found[SHARPENED] = replace(adapter, head=sharpened(adapter.head, option, margin))
    found[CONSTANT] = constant(adapter, *with_option(adapter.space, best))
    with suppress(LatentKnobsError):  # of a knob that takes no such value
        if not torch.allclose(mean.value_J, torch.tensor(best, dtype=mean.value_J.dtype), atol=1e-9):
            found[MEAN] = constant(adapter, *with_option(adapter.space, mean.value_J.tolist()))
    return found


def sharpened(head: OptionHead, option: int, margin: float) -> OptionHead:
    """A head that takes another option only where it is more than `margin` (nats) more probable than this one."""
    head = copy.deepcopy(head)
    last = head.mlp[-1]
    assert isinstance(last, nn.Linear)
    places = [option]
    if head.factorised:
        first_J = [sum(head.sizes[:j]) for j in range(len(head.sizes))]
        places = [first + int(place) for first, place in zip(first_J, head.grid_KJ[option], strict=True)]
    with torch.no_grad():
        last.bias[places] += margin / len(places)
    return head


def constant(adapter: KnobAdapter, space: KnobSpace, option: int) -> KnobAdapter:
    """An adapter that always takes an option; it reads nothing that a model would have to fit."""
    head = OptionHead(space, 1, hidden=1)
    last = head.mlp[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias[option] = SURE
    rival = adapter.rival
    if isinstance(rival, OptionHead) and space.K > adapter.space.K:
        rival = widened(rival, adapter.space, space)
    return replace(adapter, space=space, head=head.eval(), features=("entropy",), rival=rival)


def widened(head: OptionHead, space: KnobSpace, wider: KnobSpace) -> OptionHead:
    """The same head in a space with one more option, which it never takes."""
    found = OptionHead.of_shape(wider, head.in_features, OptionShape(**head.shape()))
    places = list(range(space.K))
    if head.factorised:
        starts = [sum(found.sizes[:j]) for j in range(len(found.sizes))]
        knobs = zip(starts, space.knobs, wider.knobs, strict=True)
        places = [start + new.options.index(value) for start, old, new in knobs for value in old.options]
    known = found.state_dict()
    for name, value in head.state_dict().items():
        where: Any = slice(None) if known[name].shape == value.shape else places
        known[name].fill_(-NEVER if value.ndim == 1 else 0)[where] = value
    return found.eval()


def with_option(space: KnobSpace, values: Sequence[float]) -> tuple[KnobSpace, int]:
    """The space with one more option, and its index; or the one that has these values already."""
    for k, row in enumerate(space.values_KJ().tolist()):
        if torch.allclose(torch.tensor(row), torch.tensor(list(values)), atol=1e-9):
            return space, k
    knobs = [
        type(knob)(**{**knob.model_dump(), "options": sorted({*knob.options, value})})
        for knob, value in zip(space.knobs, values, strict=True)
    ]
    wider = KnobSpace.of(*knobs, order=list(space.names))
    chosen = wider.select([*space.options, dict(zip(space.names, values, strict=True))])
    return KnobSpace(chosen.knobs, chosen.grid_KJ, space.order), space.K


def typical_margin(
    policy: Policy, engine: Engine, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], option: int, budget: int
) -> float | None:
    """The median of how much more probable (nats) the head's option is than another one, where it differs; None without any."""
    some = rollouts[:: max(1, len(rollouts) // MOST)]
    texts = [prompts[rollout.prompt].ids for rollout in some], [rollout.ids for rollout in some]
    parts: list[Tensor] = []
    for rollout, seen in zip(some, engine.observe(*texts, reads(policy), max_new_tokens=budget), strict=True):
        log_pi_SK = policy.log_pi(seen.rows(segment_starts(prompts[rollout.prompt], rollout, policy).to(seen.logits_NV.device)))
        if log_pi_SK is None:
            return None
        best_S = log_pi_SK.argmax(-1)
        parts.append((pick(log_pi_SK, best_S) - log_pi_SK[:, option])[best_S != option].cpu())
    margin = torch.cat(parts)
    return float(margin.median()) if len(margin) else None


def winner(rewards: dict[str, Floats]) -> str:
    """The candidate with the best mean reward; of equal ones the first."""
    means = {name: float(reward_SP.mean()) for name, reward_SP in rewards.items()}
    return max(means, key=lambda name: means[name])


def sentence(rewards: dict[str, Floats], held: str, prompts: int, trained: int) -> str:
    """What was chosen, and by how much."""
    means = ", ".join(f"{name} {reward_SP.mean():.3f}" for name, reward_SP in rewards.items())
    other = CONSTANT if held == HEAD else HEAD
    gain = estimate((rewards[held] - rewards[other]).mean(0))
    also = f", {'all' if trained == prompts else trained} of which also train" if trained else ""
    return f"The adapter holds the {held}: on {prompts} dev prompts{also}: {means}; above the {other} by {gain}."
