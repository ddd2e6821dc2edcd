"""Does a conclusion hold? Each claim of a recipe becomes a sentence with its evidence.

A claim about several rivals or tasks holds if it holds against each, and fails if it fails against one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.paper.recipe import Claim
from latentknobs.evaluation.statistics import ALPHA, Interval, estimate

if TYPE_CHECKING:
    from benchmarks.paper.experiment import Field

HOLDS, OPEN, FAILS, UNJUDGED = "holds", "cannot be told", "does not hold", "not judged"
ORDER = (HOLDS, OPEN, FAILS)
VERDICTS = (*ORDER, UNJUDGED)


@dataclass(frozen=True)
class Key:
    """One comparison: a measure of a subject against a rival's (or against `null`, without one) on the prompts of a task."""

    measure: str
    subject: str
    rival: str = ""
    task: str = "all"
    is_share: bool = False  # of wins, not of gains
    null: float = 0.0


def compared(claim: Claim, field: "Field", first: str, default: str) -> list[Key]:
    """The comparisons that decide a claim; none where a policy is missing, or every rival is among the best."""
    from benchmarks.paper.experiment import Key

    subject, name = claim.head or first, default if claim.measure == "reward" else claim.measure
    if any(not players_called(word, field) for word in (subject, *claim.over)):
        return []
    if claim.expect in ("above", "below"):
        return [Key(name, subject, task=claim.task, null=claim.value)]
    is_share = claim.expect in ("wins", "never_loses")
    tasks = field.task_names()[1:] or ["all"] if claim.task == "each" else [claim.task]
    return [
        Key(name, subject, rival, task, is_share, 0.5 if is_share else 0.0)
        for task in tasks
        for rival in rivals(claim.over, field, name, subject)
        if not (claim.expect == "wins" and rival in best_here(field, name, task))
    ]


def judge(claim: Claim, field: "Field", first: str, default: str) -> dict[str, Any]:
    """The claim with its `verdict` and the figures that decide it."""
    if missing := [word for word in (claim.head or first, *claim.over) if not players_called(word, field)]:
        return {"say": claim.say, "verdict": UNJUDGED, "evidence": f"at this size there is no {missing[0]!r}"}
    found = [(decide(claim, field.compare(key)), figures(key, field)) for key in compared(claim, field, first, default)]
    worst = max((verdict for verdict, _ in found), key=ORDER.index, default=UNJUDGED)
    shown = [text for verdict, text in found if verdict == worst]
    evidence = "; ".join(shown[:6]) + (f"; {len(shown) - 6} more" if len(shown) > 6 else "")
    return {"say": claim.say, "verdict": worst, "evidence": evidence or "every rival is among the best"}


def figures(key: Key, field: "Field") -> str:
    """A comparison in words and numbers."""
    found = field.compare(key)
    what = f"{key.task}, {key.measure}: {key.subject} against {key.rival}" if key.rival else f"{key.subject}, {key.measure}:"
    return f"{what} {found}, p {found.p:.3f}"


def decide(claim: Claim, found: Interval) -> str:
    """What one comparison says about a claim, by its p after the correction for all comparisons of the recipe."""
    shown, null = found.p < ALPHA, {"wins": 0.5, "never_loses": 0.5, "above": claim.value, "below": claim.value}
    above, below = (shown and (found.mean > null.get(claim.expect, 0.0)) == up for up in (True, False))
    holds, fails = {
        "better": (above, below),
        "not_worse": (not below and found.low >= -claim.margin, below),
        "wins": (above, below),
        "never_loses": (not below, below),
        "above": (above, below),
        "below": (below, above),
    }[claim.expect]
    return HOLDS if holds else FAILS if fails else OPEN


def rivals(over: list[str], field: "Field", name: str, subject: str) -> list[str]:
    """The players that a claim names, without its subject."""
    best = field.best.get(name, next(iter(field.best.values())))
    found = [player for word in over for player in ([best] if word == "tuned" else players_called(word, field))]
    return [player for player in dict.fromkeys(found) if player != subject and field.meets(player, subject)]


def players_called(word: str, field: "Field") -> list[str]:
    """The players of a group, or named so, or of a tuned family (`edt` is `edt: base=1,theta=0.3`); `tuned` is any constant."""
    if word == "tuned":
        return field.groups["constants"]
    return field.groups.get(word) or [
        player for player in field.players if player == word or player.startswith((f"{word}: ", f"{word} ("))
    ]


def best_here(field: "Field", name: str, task: str) -> list[str]:
    """The constants whose reward does not differ from that of the best one of a task, on these very prompts."""
    value = {player: field.by_run(name, player, task)[0] for player in field.groups["constants"]}
    best = value[max(value, key=lambda player: float(value[player].mean()))]
    return [player for player in value if estimate(best - value[player]).low <= 0]
