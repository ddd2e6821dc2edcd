"""Gathers what `diagnose` judges, from pieces that a run holds anyway. Nothing here runs the language model."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch.nn.functional import one_hot

from latentknobs.config import TrainConfig
from latentknobs.data.segment_batches import Features
from latentknobs.heads.option_head import OptionHead
from latentknobs.learners.lpo import entropy
from latentknobs.learners.lpo.pairs import Pair
from latentknobs.policies import Pick
from latentknobs.training.diagnostics import NONE, Count, Facts
from latentknobs.training.optimise import SEGMENTS, validate
from latentknobs.training.processes import Processes

RESPONSES, TOGETHER = 64, 8  # of each task that option usage is read off; at a time
PAIRS = 512  # of each kind that accuracies are read off
T = TypeVar("T")


def facts_of_round(
    head: OptionHead,
    features: Features,
    train: Sequence[Pair],
    held_out: Sequence[Pair],
    config: TrainConfig,
    *,
    options: Sequence[str],
    task_P: Sequence[str],
    lengths: Sequence[tuple[int, int]],
    prompt_N: Sequence[int] = (),
    reward_N: Sequence[float | None] = (),
    skipped: Count = NONE,
    reference: OptionHead | None = None,
    processes: Processes | None = None,
) -> Facts:
    """What one round shows. To be called in all processes; each gets the same.

    Args:
        features: those that the head reads.
        train, held_out: `chosen` and `rejected` index responses of the features, `prompt` a prompt.
        options: the words for each option.
        task_P: the task of each prompt.
        lengths: tokens of the chosen and of the rejected response of each pair.
        prompt_N, reward_N: the prompt and the reward of each of the N rollouts (None where it failed); nothing for given pairs.
        skipped: segments left out by `min_spread`, of all.
    """
    pairs = [*train, *held_out]
    told = {r: task_P[pair.prompt] for pair in pairs for r in (pair.chosen, pair.rejected)}
    log_pi_NK = head(features.sample(SEGMENTS).to(head.shift_F.device), fold=True).detach()
    return Facts(
        options=options,
        usage=option_usage(head, features, told, config.pick),
        entropy=entropy(log_pi_NK).mean().item(),
        prompts=Counter(task_P),
        pairs=Counter(task_P[pair.prompt] for pair in pairs),
        tied=tied_prompts(prompt_N, reward_N),
        lengths=lengths,
        train=ordered_rightly(head, features, train, config, reference, processes),
        held_out=ordered_rightly(head, features, held_out, config, reference, processes),
        skipped=skipped,
        failed=Count(sum(reward is None for reward in reward_N), len(reward_N)),
    )


@torch.no_grad()
def option_usage(head: OptionHead, features: Features, tasks: dict[int, str], pick: Pick) -> dict[str, list[float]]:
    """By task, the share of segments in which the head takes each option, on at most 64 evenly spread responses of each.

    Args:
        tasks: the task of each response, by index.
        pick: `greedy` counts the most likely option of each segment, `sample` takes the mean of its probabilities.
    """
    usage = {}
    for task in sorted(set(tasks.values())):
        rows = evenly(sorted(r for r, name in tasks.items() if name == task), RESPONSES)
        parts = []
        for start in range(0, len(rows), TOGETHER):
            batch = features.batch(torch.tensor(rows[start : start + TOGETHER]))
            log_pi_NK = head(batch.feature_NF.to(head.shift_F.device), fold=True)
            parts.append(one_hot(log_pi_NK.argmax(-1), log_pi_NK.shape[-1]).double() if pick == "greedy" else log_pi_NK.exp())
        share_NK = torch.cat(parts)
        if len(share_NK):
            usage[task] = share_NK.mean(0).tolist()
    return usage


def tied_prompts(prompt_N: Sequence[int], reward_N: Sequence[float | None]) -> Count:
    """How many prompts have the same reward for all their rollouts, of those with at least two rewards."""
    rewards: dict[int, list[float]] = {}
    for prompt, reward in zip(prompt_N, reward_N, strict=True):
        if reward is not None:
            rewards.setdefault(prompt, []).append(reward)
    several = [values for values in rewards.values() if len(values) > 1]
    return Count(sum(min(values) == max(values) for values in several), len(several))


def ordered_rightly(
    head: OptionHead, features: Features, pairs: Sequence[Pair], config: TrainConfig, reference: OptionHead | None = None,
    processes: Processes | None = None,
) -> Count:  # fmt: skip
    """How many pairs the head orders as the reward did, of at most 512 evenly spread ones."""
    some = evenly(pairs, PAIRS)
    if not some:
        return NONE
    accuracy = validate(head, features, some, config, reference, processes)["validation_accuracy"]
    return Count(round(accuracy * len(some)), len(some))


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread."""
    return [items[n * len(items) // most] for n in range(most)] if len(items) > most else list(items)
