"""Does a conclusion hold? Each claim of a recipe becomes a sentence with its evidence.

A claim about several rivals or tasks holds if it holds against each, and fails if it fails against one.
"""

from typing import TYPE_CHECKING, Any

from benchmarks.paper.recipe import Claim
from latentknobs.evaluation.statistics import Interval, estimate, win_share

if TYPE_CHECKING:
    from benchmarks.paper.experiment import Field

HOLDS, OPEN, FAILS, UNJUDGED = "holds", "cannot be told", "does not hold", "not judged"
ORDER = (HOLDS, OPEN, FAILS)
VERDICTS = (*ORDER, UNJUDGED)


def judge(claim: Claim, field: "Field", first: str, default: str) -> dict[str, Any]:
    """The claim with its `verdict` and the figures that decide it."""
    subject, name = claim.head or first, default if claim.measure == "reward" else claim.measure
    if missing := [word for word in (subject, *claim.over) if not players_called(word, field)]:
        return {"say": claim.say, "verdict": UNJUDGED, "evidence": f"at this size there is no {missing[0]!r}"}
    if claim.expect in ("above", "below"):
        mean, low, high = field.interval(name, subject, claim.task)
        verdict = decide(claim, Interval(mean, low, high))
        return {"say": claim.say, "verdict": verdict, "evidence": f"{subject}, {name}: {mean:.3f} [{low:.3f}, {high:.3f}]"}
    tasks = field.task_names()[1:] or ["all"] if claim.task == "each" else [claim.task]
    found = [
        against(claim, field, subject, rival, name, task)
        for task in tasks
        for rival in rivals(claim.over, field, name, subject)
        if not (claim.expect == "wins" and rival in best_here(field, name, task))
    ]
    worst = max((verdict for verdict, _ in found), key=ORDER.index, default=UNJUDGED)
    shown = [figures for verdict, figures in found if verdict == worst]
    evidence = "; ".join(shown[:6]) + (f"; {len(shown) - 6} more" if len(shown) > 6 else "")
    return {"say": claim.say, "verdict": worst, "evidence": evidence or "every rival is among the best"}


def against(claim: Claim, field: "Field", subject: str, rival: str, name: str, task: str) -> tuple[str, str]:
    """One comparison: its verdict and its figures."""
    keep = field.keep(task)
    ours_SP, theirs_SP = field.values(name, subject)[:, keep], field.values(name, rival)[:, keep]
    is_share = claim.expect in ("wins", "never_loses")
    shown = estimate(win_share(ours_SP, theirs_SP) if is_share else ours_SP.mean(0) - theirs_SP.mean(0))
    return decide(claim, shown), f"{task}, {name}: {subject} against {rival} {shown}"


def decide(claim: Claim, interval: Interval) -> str:
    """What one interval says about a claim."""
    low, high = interval.low, interval.high
    holds, fails = {
        "better": (low > 0, high <= 0),
        "not_worse": (high >= 0 and low >= -claim.margin, high < 0),
        "wins": (low > 0.5, high <= 0.5),
        "never_loses": (high >= 0.5, high < 0.5),
        "above": (low > claim.value, high <= claim.value),
        "below": (high < claim.value, low >= claim.value),
    }[claim.expect]
    return HOLDS if holds else FAILS if fails else OPEN


def rivals(over: list[str], field: "Field", name: str, subject: str) -> list[str]:
    """The players that a claim names, without its subject."""
    best = field.best.get(name, next(iter(field.best.values())))
    found = [player for word in over for player in ([best] if word == "tuned" else players_called(word, field))]
    return [player for player in dict.fromkeys(found) if player != subject]


def players_called(word: str, field: "Field") -> list[str]:
    """The players of a group, or named so, or of a tuned family (`edt` is `edt: base=1,theta=0.3`); `tuned` is any constant."""
    if word == "tuned":
        return field.groups["constants"]
    return field.groups.get(word) or [player for player in field.players if player == word or player.startswith(f"{word}: ")]


def best_here(field: "Field", name: str, task: str) -> list[str]:
    """The constants whose reward does not differ from that of the best one of a task, on these very prompts."""
    value = {player: field.values(name, player)[:, field.keep(task)].mean(0) for player in field.groups["constants"]}
    best = value[max(value, key=lambda player: float(value[player].mean()))]
    return [player for player in value if estimate(best - value[player]).low <= 0]
