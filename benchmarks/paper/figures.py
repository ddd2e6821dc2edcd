"""The plots of docs/paper.md: gains with their intervals, vote curves, fronts. PNG, small."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HEAD, REST, STATIC = "#b3261e", "#3b6ea5", "#9a9a9a"


def draw(part: dict[str, Any], path: Path) -> None:
    """The plot of a part: its front, else its vote curve, else the gains of its first subject."""
    kind = "front" if "front" in part else "curve" if "curve" in part else "gains"
    rows = len(part["tables"][0]["rows"])
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7, 1 + 0.24 * rows) if kind == "gains" else (6, 4.2), layout="constrained")
        {"front": _front, "curve": _curve, "gains": _gains}[kind](figure.subplots(), part)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=80, metadata={"Software": None})


def _gains(axes: Axes, part: dict[str, Any]) -> None:
    table = part["tables"][0]
    rows = table["rows"][::-1]
    for y, row in enumerate(rows):
        mean, low, high = row["gain"]
        axes.plot([low, high], [y, y], color=HEAD if low > 0 else REST if high < 0 else STATIC, lw=3, solid_capstyle="butt")
        axes.plot(mean, y, "o", color="black", ms=4)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [row["policy"] for row in rows])
    axes.set_xlabel(f"gain of {table['subject']} over the policy, {table['measure']}, 95 % interval")


def _curve(axes: Axes, part: dict[str, Any]) -> None:
    shown = [*part["groups"]["heads"], *part["groups"]["constants"]]
    for player in shown:
        votes = [int(n) for n in part["curve"][player]]
        values = list(part["curve"][player].values())
        is_head = player in part["groups"]["heads"]
        (line,) = axes.plot(votes, [v[0] for v in values], lw=2.2 if is_head else 1, ls="-" if is_head else "--", label=player)
        if is_head:
            axes.fill_between(votes, [v[1] for v in values], [v[2] for v in values], alpha=0.12, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xlabel("votes")
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=7)


def _front(axes: Axes, part: dict[str, Any]) -> None:
    means, static = part["front"]["means"], part["front"]["static"]
    heads = part["groups"]["heads"]
    in_tables = {player for group in part["groups"].values() for player in group}
    for player, (x, y) in means.items():
        colour = HEAD if player in heads else STATIC if player in static else REST
        axes.plot(x, y, "D" if player in heads else "o", color=colour, ms=7 if player in heads else 4)
        if player in in_tables:
            label = player.split(":")[0].removeprefix("temperature ")
            axes.annotate(label, (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
    for players, colour in ((static, STATIC), (heads, HEAD)):
        axes.plot(*zip(*best_points([means[player] for player in players]), strict=True), color=colour, lw=1)
    axes.set_xlabel(part["front"]["axes"][0])
    axes.set_ylabel(part["front"]["axes"][1])


def best_points(points: list[list[float]]) -> list[tuple[float, float]]:
    """The points that no other one beats on both axes, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(((x, y) for x, y in points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]
