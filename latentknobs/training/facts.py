"""Computes the inputs of `diagnose` and of a learner's `findings` from the results of a round. Nothing here runs the LM."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.nn.functional import one_hot

from latentknobs.config import TrainConfig
from latentknobs.data.examples import Example
from latentknobs.data.segment_batches import Features
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.value_head import ValueHead
from latentknobs.learners.base import Count, Fitted, Learner
from latentknobs.learners.penalties import entropy
from latentknobs.learners.rewards import by_prompt
from latentknobs.policies import Pick
from latentknobs.training.diagnostics import NONE, Facts
from latentknobs.training.fit import SEGMENTS, evaluate
from latentknobs.training.processes import Processes

RESPONSES, TOGETHER = 64, 8  # of each task that option usage is read off; at a time
EXAMPLES = 512  # of each kind that metrics are read off
T = TypeVar("T")


def facts_of_round(
    learner: Learner, module: nn.Module, features: Features, train: Sequence[Example], held_out: Sequence[Example],
    config: TrainConfig, *, task_P: Sequence[str], length_R: Sequence[int], prompt_N: Sequence[int] = (),
    reward_N: Sequence[float | None] = (), skipped: Count = NONE, reference: nn.Module | None = None,
    processes: Processes | None = None,
) -> tuple[Facts, list[str]]:  # fmt: skip
    """What one round shows, and what its learner finds. To be called in all processes; each gets the same.

    Args:
        features: those that the module reads.
        train, held_out: of responses of the features.
        task_P: the task of each prompt.
        length_R: tokens of each response of the features.
        prompt_N, reward_N: the prompt and the reward of each of the N rollouts (None where it failed); empty without rollouts.
        skipped: segments left out by `min_spread`, of all.
    """
    tasks = {r: task_P[example.prompt] for example in (*train, *held_out) for r in example.responses}
    space = learner.inputs.space
    facts = Facts(
        options=[space.label(k) for k in range(space.K)],
        usage=option_usage(module, features, tasks, config.pick) if isinstance(module, OptionHead) else {},
        entropy=mean_entropy(module, features) if isinstance(module, OptionHead) else None,
        values=value_moments(module, features) if isinstance(module, ValueHead) and not module.statistics else {},
        tied=tied_prompts(prompt_N, reward_N),
        skipped=skipped,
        failed=Count(sum(reward is None for reward in reward_N), len(reward_N)),
    )
    sides = [evenly(side, EXAMPLES) for side in (train, held_out)]
    means = [evaluate(learner, module, features, side, config, reference, processes) if side else {} for side in sides]
    fitted = Fitted([*train, *held_out], means[0], means[1], len(sides[0]), len(sides[1]), task_P, length_R)
    return facts, learner.findings(fitted)


@torch.no_grad()
def mean_entropy(head: OptionHead, features: Features) -> float:
    """Of the head's choices in some segments, in nats."""
    return float(entropy(head(features.sample(SEGMENTS).to(head.shift_F.device))).mean())


@torch.no_grad()
def value_moments(head: ValueHead, features: Features) -> dict[str, tuple[float, float, float]]:
    """Of some segments: see `Facts.values`."""
    value_NJ = head(features.sample(SEGMENTS).to(head.shift_F.device))
    rows = zip(value_NJ.mean(0).tolist(), value_NJ.std(0).tolist(), head.ranges, strict=True)
    return {name: (mean, std, high - low) for name, (mean, std, (low, high)) in zip(head.space.names, rows, strict=True)}


@torch.no_grad()
def option_usage(head: OptionHead, features: Features, tasks: dict[int, str], pick: Pick) -> dict[str, list[float]]:
    """By task, the share of segments in which the head takes each option (its mean probability with pick=sample), on at most 64
    evenly spread responses of each; `tasks` are those of the responses.
    """
    usage = {}
    for task in sorted(set(tasks.values())):
        rows = evenly(sorted(r for r, name in tasks.items() if name == task), RESPONSES)
        parts = []
        for start in range(0, len(rows), TOGETHER):
            segments = features.segments(torch.tensor(rows[start : start + TOGETHER]))
            log_pi_NK = head(segments.feature_MF.to(head.shift_F.device))
            parts.append(one_hot(log_pi_NK.argmax(-1), log_pi_NK.shape[-1]).double() if pick == "greedy" else log_pi_NK.exp())
        share_NK = torch.cat(parts)
        if len(share_NK):
            usage[task] = share_NK.mean(0).tolist()
    return usage


def tied_prompts(prompt_N: Sequence[int], reward_N: Sequence[float | None]) -> Count:
    """How many prompts have the same reward for all their rollouts, of those with at least two rewards."""
    several = [{*rewards.values()} for rewards in by_prompt(prompt_N, reward_N).values() if len(rewards) > 1]
    return Count(sum(len(values) == 1 for values in several), len(several))


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread."""
    return [items[n * len(items) // most] for n in range(most)] if len(items) > most else list(items)
