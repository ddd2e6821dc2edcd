"""Runs one part of a recipe: fit the heads, tune the rivals on dev prompts, let all of them answer, compare, judge the claims."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.arena import Arena, Player
from benchmarks.paper.baselines import constants, dev_mean, family, standard, tuned
from benchmarks.paper.claims import judge
from benchmarks.paper.measures import measure
from benchmarks.paper.recipe import Numbers, Part
from benchmarks.paper.statistics import hypervolume_gain, sign_flip
from benchmarks.paper.worlds import load_world
from latentknobs.evaluation.statistics import Interval, estimate, holm, win_share

Floats = NDArray[np.float64]
Say = Callable[[str], None]


@dataclass
class Field:
    """All players that answered the held-out prompts, and what is measured on their answers.

    Attributes:
        groups: names of players by kind: heads, constants, rules, standard.
        best: for a measure, the constant that is best on dev prompts.
        static: joint settings that stand in the front only, in no table.
    """

    arena: Arena
    players: dict[str, Player]
    groups: dict[str, list[str]]
    best: dict[str, str]
    copies: int
    static: dict[str, Player]

    def __post_init__(self) -> None:
        self.tasks = np.array([str(prompt.columns.get("task", "all")) for prompt in self.arena.prompts("held_out")])
        self._values: dict[tuple[str, str], Floats] = {}

    def values(self, name: str, player: str) -> Floats:
        """(S, P) a measure of a player on the held-out prompts."""
        if (name, player) not in self._values:
            who = (self.players | self.static)[player]
            rollouts = self.arena.play(who, "held_out", self.copies)
            self._values[name, player] = measure(name, self.arena, who, "held_out", rollouts, self.copies)
        return self._values[name, player]

    def task_names(self) -> list[str]:
        """`all`, then each task where there are several."""
        tasks = sorted(set(self.tasks))
        return ["all", *(tasks if len(tasks) > 1 else [])]

    def keep(self, task: str) -> NDArray[np.bool_]:
        """(P,) the prompts of a task."""
        return np.asarray((self.tasks == task) | (task == "all"))

    def interval(self, name: str, player: str, task: str = "all") -> list[float]:
        """Mean of a measure over prompts with its interval; prompts where it is not defined are left out."""
        value_P = nan_mean(self.values(name, player)[:, self.keep(task)])
        value_P = value_P[~np.isnan(value_P)]
        if not len(value_P):
            return [float("nan")] * 3
        return rounded(estimate(value_P))

    def table(self, name: str, subject: str, task: str) -> dict[str, Any]:
        """The subject against everybody, with p-values corrected for the number of rivals."""
        keep = self.keep(task)
        ours_SP = self.values(name, subject)[:, keep]
        rivals = [player for player in self.players if player != subject]
        rows: list[dict[str, Any]] = []
        for rival in rivals:
            theirs_SP = self.values(name, rival)[:, keep]
            gain_P, wins_P = ours_SP.mean(0) - theirs_SP.mean(0), win_share(ours_SP, theirs_SP)
            gain, wins = estimate(gain_P), estimate(wins_P)
            rows.append({
                "policy": rival, "mean": self.interval(name, rival, task),
                "gain": rounded(gain), "wins": rounded(wins),
                "p": sign_flip(gain_P), "p_wins": sign_flip(wins_P - 0.5),
            })  # fmt: skip
        for kind in ("p", "p_wins"):
            for row, corrected in zip(rows, holm([row[kind] for row in rows]), strict=True):
                row[f"{kind}_holm"] = corrected
        return {"measure": name, "subject": subject, "task": task, "mean": self.interval(name, subject, task), "rows": rows}


def rounded(interval: Interval) -> list[float]:
    """Mean, low and high with five decimals, as summaries keep them."""
    return [round(interval.mean, 5), round(interval.low, 5), round(interval.high, 5)]


def nan_mean(value_SP: Floats) -> Floats:
    """(P,) mean over samples, NaN where none is defined."""
    defined_SP = ~np.isnan(value_SP)
    total_P = np.where(defined_SP, value_SP, 0).sum(0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total_P / defined_SP.sum(0))


def run_part(part: Part, numbers: Numbers, folder: Path, say: Say) -> dict[str, Any]:
    """Everything about one part, as plain data for `results/`."""
    sizes = {"train": numbers.train, "dev": numbers.dev, "held_out": numbers.held_out}
    world = load_world(part.world, sizes, part.prefix_tokens)
    arena = Arena(world, folder, part.train | numbers.settings)
    say(f"{world.name}: {len(world.train)} training, {len(world.dev)} dev and {len(world.held_out)} held-out prompts")
    field = gather(part, numbers, arena, say)
    subjects = [name for name in part.subjects if name in field.groups["heads"]] or field.groups["heads"][:1]
    tables = [field.table(name, subject, task) for subject in subjects for name in part.measures for task in field.task_names()]
    described = {
        name: {head: {task: field.interval(name, head, task) for task in field.task_names()} for head in field.groups["heads"]}
        for name in part.describe
    }
    out: dict[str, Any] = {
        "world": world.name,
        "numbers": {p: len(getattr(world, p)) for p in sizes} | {"copies": numbers.copies, "dev_copies": numbers.dev_copies},
        "groups": field.groups, "best": field.best, "tables": tables, "described": described,
    }  # fmt: skip
    if part.curve:
        out["curve"] = {p: {n: field.interval(f"vote:{n}", p) for n in part.curve if n <= numbers.copies} for p in field.players}
    if part.front:
        out["front"] = front(part.front, field)
    out["claims"] = [judge(claim, field, subjects[0], part.measures[0]) for claim in part.claims]
    out["cost"] = {f"{name}, processor seconds": round(value, 1) for name, value in arena.seconds.items()}
    out["cost"]["responses"] = arena.generated
    return out


def gather(part: Part, numbers: Numbers, arena: Arena, say: Say) -> Field:
    """Fits and tunes: nothing here looks at a held-out prompt."""
    baselines = [name for name in part.baselines if numbers.baselines is None or name in numbers.baselines]
    heads = []
    for name in chosen_heads(part, numbers):
        say(f"  head {name}")
        heads.append(arena.fit(name, part.heads[name]))
    space, level = heads[0].policy.space, str(part.train.get("level", "token"))
    fixed, targets = constants(space), part.tune_on or part.measures[:1]
    best = {}
    rules: dict[str, Player] = {}
    for target in targets:
        say(f"  rivals, tuned for {target}")
        values = {p.name: dev_mean(p, arena, target, numbers.dev_copies) for p in fixed}  # one cache for all targets
        best[target] = max(values, key=lambda name: values[name])
        for name in baselines:
            if name != "statistics":
                rule = tuned(name, arena, target, numbers.dev_copies, part.hand)
                rules[rule.name] = rule
    if "statistics" in baselines:
        rival = arena.rival(heads[0])
        rules[rival.name] = rival
    basic = standard(space, level, arena.world.tokenizer)
    groups = {"heads": heads, "constants": fixed, "standard": basic, "rules": list(rules.values())}
    players = {player.name: player for group in groups.values() for player in group}
    static = {player.name: player for player in family("joint", arena)} if part.front and numbers.static else {}
    for player in (players | static).values():
        say(f"  plays: {player.name}")
        arena.play(player, "held_out", numbers.copies)
    names = {name: [p.name for p in group] for name, group in groups.items()}
    return Field(arena, players, names, best, numbers.copies, static)


def chosen_heads(part: Part, numbers: Numbers) -> list[str]:
    """The heads of a part that a size trains, in the recipe's order."""
    return [name for name in part.heads if numbers.heads is None or name in numbers.heads]


def front(axes: tuple[str, str], field: Field) -> dict[str, Any]:
    """Where every policy stands between two measures, and what the heads' curve adds to the front of everything static."""

    def points(group: list[str]) -> Floats:
        return np.stack([np.stack([nan_mean(field.values(axis, player)) for axis in axes], -1) for player in group])

    tuned_joint = [name for name in field.groups["rules"] if name.startswith("best joint")]
    static = [*field.groups["constants"], *tuned_joint, *field.static]
    gain, low, high = hypervolume_gain(points(field.groups["heads"]), points(static))
    means = {player: points([player])[0].mean(0).round(5).tolist() for player in field.players | field.static}
    return {"axes": list(axes), "means": means, "static": static, "hypervolume gain": [gain, low, high]}
