"""The known ways in which learning a choice of options fails, each told by a plain sentence with the numbers and what to try.

Pure functions of small summaries (`Facts`, gathered in `facts.py`): a check whose summary is missing stays silent, and so does
one with too little data to tell. Thresholds are meant to be quiet: what they let pass may still be worth a look in the report.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

CONSTANT = 0.98  # share of segments in which a head chooses the same option in every task, to call it a constant
UNIFORM = 0.99  # mean entropy as a share of log K, to call a head nearly uniform
TIED = 0.5  # share of prompts whose rollouts all earn the same
DOMINANT = 0.75  # share of pairs that come from one task
LONGER = 0.7  # share of pairs in which the chosen response is the longer (or the shorter) one
STRETCH = 1.25  # how many times as long (or as short) the head's responses are as the tuned constant's
GAP = 0.1  # preference accuracy on training pairs minus that on held-out pairs
SKIPPED = 0.9  # share of segments left out by `min_spread`
FAILED = 0.01  # share of responses on which the reward failed
FEW = 30  # pairs below which shares of pairs say nothing
SOME = 5  # pairs below which a difference of two shares says nothing
ERRORS = 2.0  # standard errors that a difference of two shares must exceed


class Count(NamedTuple):
    """Some of so many."""

    some: int
    of: int

    @property
    def share(self) -> float:
        """Between 0 and 1; 0 of nothing."""
        return self.some / self.of if self.of else 0.0

    def __str__(self) -> str:
        return f"{self.some} of {self.of} ({self.share:.0%})"


NONE = Count(0, 0)


@dataclass(frozen=True)
class Facts:
    """Small summaries of a run. What is left out is not judged.

    Attributes:
        options: the words for each of the K options.
        usage: by task, the share of segments in which the head takes each option.
        entropy: mean entropy of the head, in nats.
        prompts, pairs: how many there are, by task.
        tied: prompts whose rollouts all earn the same, of those with at least two rewards.
        lengths: tokens of the chosen and of the rejected response of each pair.
        head_length, constant_length: mean tokens of a response to the held-out prompts, by the head and by the tuned constant.
        train, held_out: pairs that the head orders rightly, of those it was trained on and of others.
        skipped: segments left out by `min_spread`, of all.
        failed: responses on which the reward failed, of all.
    """

    options: Sequence[str] = ()
    usage: Mapping[str, Sequence[float]] = field(default_factory=dict)
    entropy: float | None = None
    prompts: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, int] = field(default_factory=dict)
    tied: Count = NONE
    lengths: Sequence[tuple[int, int]] = ()
    head_length: float | None = None
    constant_length: float | None = None
    train: Count = NONE
    held_out: Count = NONE
    skipped: Count = NONE
    failed: Count = NONE


def diagnose(facts: Facts) -> list[str]:
    """One sentence or two for each failure that the facts show, in the order in which to look at them; empty is good news."""
    return [told for check in CHECKS if (told := check(facts)) is not None]


def failed_rewards(facts: Facts) -> str | None:
    """Responses without a reward take no part."""
    if facts.failed.share < FAILED:
        return None
    return (
        f"The reward failed on {facts.failed} responses, which take no part. The files of scores hold the cause of each failure."
    )


def reward_ties(facts: Facts) -> str | None:
    """A prompt whose rollouts all earn the same gives no pair."""
    if facts.tied.share < TIED:
        return None
    return (
        f"Rewards tie: for {facts.tied} prompts all rollouts earn the same, and these teach nothing. Use a finer reward, more "
        "rollouts, a wider grid, or prompts that are neither too easy nor too hard."
    )


def dominant_task(facts: Facts) -> str | None:
    """Several tasks, and nearly all pairs are of one."""
    if len(facts.prompts) < 2 or not facts.pairs:
        return None
    task = max(facts.pairs, key=lambda name: facts.pairs[name])
    mine = Count(facts.pairs[task], sum(facts.pairs.values()))
    if mine.share < DOMINANT:
        return None
    asked = Count(facts.prompts.get(task, 0), sum(facts.prompts.values()))
    return (
        f"One task dominates: {task!r} gives {mine} pairs, from {asked} prompts, so the head learns little about the others. Add "
        "prompts of the other tasks, or see whether their rewards tie."
    )


def length_bias(facts: Facts) -> str | None:
    """The reward prefers long (or short) responses; whoever learns from it will, too (arXiv 2310.03716)."""
    unequal = [(chosen, rejected) for chosen, rejected in facts.lengths if chosen != rejected]
    longer = Count(sum(chosen > rejected for chosen, rejected in unequal), len(unequal))
    if longer.of < FEW or 1 - LONGER < longer.share < LONGER:
        return None
    chosen, rejected = (sum(side) / len(facts.lengths) for side in zip(*facts.lengths, strict=True))
    side, some = ("longer", longer) if longer.share > 0.5 else ("shorter", Count(longer.of - longer.some, longer.of))
    return (
        f"Length bias: in {some} pairs of unequal length the chosen response is the {side} one (on average {chosen:.0f} tokens "
        f"against {rejected:.0f}). See whether the reward pays for length; length_norm='mean' takes it out of the scores."
    )


def head_length(facts: Facts) -> str | None:
    """The head's own responses are much longer, or shorter, than those of the best constant."""
    if not facts.head_length or not facts.constant_length:
        return None
    ratio = facts.head_length / facts.constant_length
    if 1 / STRETCH < ratio < STRETCH:
        return None
    side = "longer" if ratio > 1 else "shorter"
    return (
        f"The head makes responses {side}: {facts.head_length:.0f} tokens on average, against {facts.constant_length:.0f} of the "
        "tuned constant. If that is not what the reward should pay for, compare responses of equal length."
    )


def skipped_segments(facts: Facts) -> str | None:
    """Nearly nothing is left to learn from."""
    if facts.skipped.share < SKIPPED:
        return None
    return (
        f"The options hardly differ: min_spread left out {facts.skipped} segments. Widen the grid, lower min_spread, or let "
        "one choice last longer (level)."
    )


def near_uniform(facts: Facts) -> str | None:
    """The head has not moved from where it began."""
    most = math.log(max(len(facts.options), 1))
    if facts.entropy is None or most == 0 or facts.entropy < UNIFORM * most:
        return None
    return (
        f"The head is nearly uniform: its mean entropy is {facts.entropy:.3f} of at most {most:.3f} nats, so it has learned next "
        "to nothing. Raise steps, learning_rate or beta, collect more pairs, or lower entropy_bonus and kl if they are set."
    )


def constant_head(facts: Facts) -> str | None:
    """The same option everywhere and in every task; of a nearly uniform head that is an accident, and told as such."""
    if len(facts.options) < 2 or not facts.usage or near_uniform(facts):
        return None
    least = [min(shares[k] for shares in facts.usage.values()) for k in range(len(facts.options))]
    share = max(least)
    if share < CONSTANT:
        return None
    return (
        f"The head has become a constant: it takes {facts.options[least.index(share)]} in at least {share:.1%} of the segments "
        "of every task. That constant does the same without a head; to keep the head open, set entropy_bonus, e.g. 0.01, or "
        "lower learning_rate or steps."
    )


def held_out_gap(facts: Facts) -> str | None:
    """The head knows its training pairs better than others, by more than chance explains."""
    ours, theirs = facts.train, facts.held_out
    if min(ours.of, theirs.of) < SOME:
        return None
    gap = ours.share - theirs.share
    error = math.sqrt(sum(count.share * (1 - count.share) / count.of for count in (ours, theirs)))
    if gap < GAP or gap < ERRORS * error:
        return None
    return (
        f"The head fits its training pairs better than others: it orders {ours} of those rightly, and {theirs} held-out ones. "
        "Collect more pairs, make the head smaller (hidden), raise weight_decay, or set patience to stop earlier."
    )


CHECKS: tuple[Callable[[Facts], str | None], ...] = (
    failed_rewards, reward_ties, dominant_task, skipped_segments, near_uniform, constant_head, held_out_gap, length_bias,
    head_length,
)  # fmt: skip
