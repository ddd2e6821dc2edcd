"""The known ways in which learning a choice of options fails, each in a plain sentence with the numbers and what to try.

Pure functions of small summaries (`Facts`, gathered in `facts.py`): a check whose summary is missing stays silent, and so does
one with too little data. Thresholds are conservative: what they let pass may still be worth a look in the report.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from latentknobs.learners.base import Count

CONSTANT = 0.98  # share of segments in which a head chooses the same option in every task, to call it a constant
STILL = 0.02  # standard deviation of values, as a share of their range, to call a head constant
UNIFORM = 0.99  # mean entropy as a share of log K, to call a head nearly uniform
TIED = 0.5  # share of prompts whose rollouts all earn the same
STRETCH = 1.25  # how many times as long (or as short) the head's responses are as the tuned constant's
SKIPPED = 0.9  # share of segments left out by `min_spread`
FAILED = 0.01  # share of responses on which the reward failed
NONE = Count(0, 0)


@dataclass(frozen=True)
class Facts:
    """Small summaries of a run. A check without its summary is skipped."""

    options: Sequence[str] = ()  # the words for each of the K options
    usage: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by task, the share of segments that take each option
    entropy: float | None = None  # mean entropy of the head, in nats
    tied: Count = NONE  # prompts whose rollouts all earn the same, of those with at least two rewards
    head_length: float | None = None  # mean tokens of a response to the held-out prompts, by the head
    constant_length: float | None = None  # the same by the tuned constant
    skipped: Count = NONE  # segments left out by `min_spread`, of all
    failed: Count = NONE  # responses on which the reward failed, of all
    values: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)  # by knob: mean, deviation, width of its range


def diagnose(facts: Facts) -> list[str]:
    """One sentence or two for each failure that the facts show, in the order in which to look at them; empty if none."""
    return [found for check in CHECKS if (found := check(facts)) is not None]


def failed_rewards(facts: Facts) -> str | None:
    """Responses without a reward take no part."""
    if facts.failed.share < FAILED:
        return None
    return (
        f"The reward failed on {facts.failed} responses, which take no part. The files of scores hold the cause of each failure."
    )


def reward_ties(facts: Facts) -> str | None:
    """A prompt whose rollouts all earn the same teaches nothing."""
    if facts.tied.share < TIED:
        return None
    return (
        f"Rewards tie: for {facts.tied} prompts all rollouts earn the same, and these teach nothing. Use a finer reward, more "
        "rollouts, a wider grid, or prompts that are neither too easy nor too hard."
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
        "to nothing. Raise steps or learning_rate, collect more rollouts, or lower what holds the head back (of lpo: kl, "
        "entropy_bonus, or a low beta)."
    )


def constant_head(facts: Facts) -> str | None:
    """The same option everywhere and in every task; of a nearly uniform head that is an accident."""
    if len(facts.options) < 2 or not facts.usage or near_uniform(facts):
        return None
    least = [min(shares[k] for shares in facts.usage.values()) for k in range(len(facts.options))]
    share = max(least)
    if share < CONSTANT:
        return None
    return (
        f"The head has collapsed to a constant: it takes {facts.options[least.index(share)]} in at least {share:.1%} of the "
        "segments of every task. That constant does the same without a head; to keep the head open, lower learning_rate or "
        "steps, or raise entropy_bonus of the learner, e.g. to 0.02."
    )


def constant_values(facts: Facts) -> str | None:
    """Values that hardly differ from segment to segment."""
    if not facts.values or any(std > STILL * width for _, std, width in facts.values.values()):
        return None
    means = ", ".join(f"{name} {mean:.3g}" for name, (mean, *_) in facts.values.items())
    return (
        f"The head has become a constant: its values differ by less than {STILL:.0%} of their ranges from {means}. That constant "
        "does the same without a head. Try more examples or steps, or another objective: likelihood learns a level."
    )


CHECKS: tuple[Callable[[Facts], str | None], ...] = (
    failed_rewards, reward_ties, skipped_segments, near_uniform, constant_head, constant_values, head_length,
)  # fmt: skip
