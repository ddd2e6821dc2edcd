"""The known ways in which pairs mislead a head, each in a plain sentence with the numbers and what to try.

A check with too little data stays silent. Thresholds are meant to be quiet: what they let pass may still be worth a look.
"""

import math
from collections import Counter

from latentknobs.learners.base import Count, Fitted

DOMINANT = 0.75  # share of pairs that come from one task
LONGER = 0.7  # share of pairs in which the chosen response is the longer (or the shorter) one
GAP = 0.1  # preference accuracy on training pairs minus that on held-out pairs
FEW = 30  # pairs below which shares of pairs are not judged
SOME = 5  # pairs below which a difference of two shares is not judged
ERRORS = 2.0  # standard errors that a difference of two shares must exceed


def pair_findings(fitted: Fitted) -> list[str]:
    """A sentence or two for each failure that the pairs show; empty if none."""
    return [found for check in (dominant_task, held_out_gap, length_bias) if (found := check(fitted)) is not None]


def dominant_task(fitted: Fitted) -> str | None:
    """Several tasks, and nearly all pairs are of one."""
    prompts, pairs = Counter(fitted.task_P), Counter(fitted.task_P[example.prompt] for example in fitted.examples)
    if len(prompts) < 2 or not pairs:
        return None
    task, count = max(pairs.items(), key=lambda item: item[1])
    mine = Count(count, pairs.total())
    if mine.share < DOMINANT:
        return None
    return (
        f"One task dominates: {task!r} gives {mine} pairs, from {Count(prompts[task], prompts.total())} prompts, so the head "
        "learns little about the others. Add prompts of the other tasks, or see whether their rewards tie."
    )


def length_bias(fitted: Fitted) -> str | None:
    """The reward prefers long (or short) responses, and so will the head (arXiv 2310.03716)."""
    lengths = [tuple(fitted.length_R[r] for r in example.responses) for example in fitted.examples]
    unequal = [(chosen, rejected) for chosen, rejected in lengths if chosen != rejected]
    longer = Count(sum(chosen > rejected for chosen, rejected in unequal), len(unequal))
    if longer.of < FEW or 1 - LONGER < longer.share < LONGER:
        return None
    chosen, rejected = (sum(side) / len(lengths) for side in zip(*lengths, strict=True))
    side, some = ("longer", longer) if longer.share > 0.5 else ("shorter", Count(longer.of - longer.some, longer.of))
    return (
        f"Length bias: in {some} pairs of unequal length the chosen response is the {side} one (on average {chosen:.0f} tokens "
        f"against {rejected:.0f}). See whether the reward pays for length; length_norm='mean' takes it out of the scores."
    )


def held_out_gap(fitted: Fitted) -> str | None:
    """The head knows its training pairs better than others, by more than chance explains."""
    if min(fitted.train_size, fitted.held_out_size) < SOME:
        return None
    sides = ((fitted.train, fitted.train_size), (fitted.held_out, fitted.held_out_size))
    ours, theirs = (Count(round(found["accuracy"] * size), size) for found, size in sides)
    gap = ours.share - theirs.share
    error = math.sqrt(sum(count.share * (1 - count.share) / count.of for count in (ours, theirs)))
    if gap < GAP or gap < ERRORS * error:
        return None
    return (
        f"The head fits its training pairs better than others: it orders {ours} of those rightly, and {theirs} held-out ones. "
        "Collect more pairs, make the head smaller (hidden), raise weight_decay, or set patience to stop earlier."
    )
