"""Runs one part of a recipe, in pieces that may run side by side, and puts them together.

A piece is one training seed (its heads are fitted and answer, and so do their controls) or the rivals, which no training touches
(constants, rules tuned on dev prompts). What a piece found is plain data: measures of the held-out answers, player by player.
`Field` has all pieces of a part and compares; `correct` makes one correction for all comparisons of a recipe.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.arena import Arena, Player
from benchmarks.paper.baselines import constants, dev_values, family, standard, tuned
from benchmarks.paper.claims import Key, compared, judge
from benchmarks.paper.measures import measure
from benchmarks.paper.recipe import Numbers, Part
from benchmarks.paper.statistics import hypervolume_gain
from benchmarks.paper.worlds import load_world
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.evaluation.comparison import controls
from latentknobs.evaluation.controls import choices_of
from latentknobs.evaluation.report import BINNED, MEAN, PER_TASK, SHUFFLED
from latentknobs.evaluation.statistics import Interval, estimate, holm, wins
from latentknobs.knobs.space import KnobSpace

Floats = NDArray[np.float64]
Say = Callable[[str], None]
Values = dict[str, dict[str, Floats]]  # by measure and player
RIVALS = "rivals"  # the piece without training; the others are training seeds


@dataclass
class Field:
    """All players that answered the held-out prompts, and what is measured on their answers.

    Attributes:
        values: by measure and player (R, S, P); R is 1 where no training seed matters.
        groups: names of players by kind: heads, constants, rules, standard, controls.
        best: for a measure, the constant that is best on dev prompts.
        tasks: (P,) of the prompts.
        static: joint settings that stand in the front only, in no table.
        corrected: p-values of comparisons after the correction for all of a recipe.
    """

    values: Values
    groups: dict[str, list[str]]
    best: dict[str, str]
    tasks: NDArray[np.str_]
    static: list[str] = field(default_factory=list)
    corrected: dict[Key, float] = field(default_factory=dict)

    @property
    def players(self) -> list[str]:
        """Everybody who is in tables."""
        return [player for group in self.groups.values() for player in group]

    def task_names(self) -> list[str]:
        """`all`, then each task where there are several."""
        tasks = sorted(set(self.tasks.tolist()))
        return ["all", *(tasks if len(tasks) > 1 else [])]

    def keep(self, task: str) -> NDArray[np.bool_]:
        """(P,) the prompts of a task."""
        return np.asarray((self.tasks == task) | (task == "all"))

    def by_run(self, name: str, player: str, task: str = "all") -> Floats:
        """(R, P) a measure, averaged over samples; NaN where it is not defined."""
        return nan_mean(self.values[name][player][:, :, self.keep(task)])

    def interval(self, name: str, player: str, task: str = "all", null: float = 0.0) -> Interval:
        """Mean of a measure over prompts and training seeds; prompts where it is not defined are left out."""
        value_RP = self.by_run(name, player, task)
        value_RP = value_RP[:, ~np.isnan(value_RP).any(0)]
        if not value_RP.shape[1]:
            return Interval(*[float("nan")] * 3)
        found = estimate(value_RP, null=null)
        return found.within(0.0, 1.0) if name.startswith("non_greedy") else found

    def compare(self, key: Key) -> Interval:
        """A comparison, its p corrected where a correction is known."""
        if not key.rival:
            found = self.interval(key.measure, key.subject, key.task, key.null)
        else:
            ours, theirs = (self.values[key.measure][who][:, :, self.keep(key.task)] for who in (key.subject, key.rival))
            everyone = np.concatenate([values.ravel() for values in self.values[key.measure].values()])
            reach = float(np.nanmax(everyone) - np.nanmin(everyone)) or 1.0
            difference, ends = (wins(ours, theirs), (0.0, 1.0)) if key.is_share else (ours - theirs, (-reach, reach))
            found = estimate(difference.mean(1), ends, key.null)
            found = found.within(0.0, 1.0) if key.is_share else found
        return replace(found, p=self.corrected.get(key, found.p))

    def rows(self, name: str, subject: str, task: str) -> list[Key]:
        """The subject against everybody; what belongs to other heads is left out."""
        return [Key(name, subject, player, task) for player in self.players if player != subject and self.meets(player, subject)]

    def meets(self, player: str, subject: str) -> bool:
        """Whether a player is a rival of a head: not if it was made for another one, as controls and heads on statistics are."""
        return not any(player.endswith(f" ({head})") for head in self.groups["heads"] if head != subject)

    def table(self, name: str, subject: str, task: str) -> dict[str, Any]:
        """The subject against everybody, as plain data."""
        rows: list[dict[str, Any]] = []
        for key in self.rows(name, subject, task):
            gain, share = self.compare(key), self.compare(replace(key, is_share=True, null=0.5))
            rows.append({
                "policy": key.rival.removesuffix(f" ({subject})"), "mean": rounded(self.interval(name, key.rival, task)),
                "gain": rounded(gain), "wins": rounded(share), "p": round(gain.p, 5),
            })  # fmt: skip
        return {
            "measure": name,
            "subject": subject,
            "task": task,
            "mean": rounded(self.interval(name, subject, task)),
            "rows": rows,
        }


def rounded(interval: Interval) -> list[float]:
    """Mean, low and high with five decimals, as summaries keep them."""
    return [round(interval.mean, 5), round(interval.low, 5), round(interval.high, 5)]


def nan_mean(value_RSP: Floats) -> Floats:
    """(R, P) mean over samples, NaN where none is defined."""
    defined_RSP = ~np.isnan(value_RSP)
    total_RP = np.where(defined_RSP, value_RSP, 0).sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total_RP / defined_RSP.sum(1))


def play_part(part: Part, numbers: Numbers, folder: Path, piece: str, say: Say) -> dict[str, Any]:
    """One piece of a part: a training seed or the rivals. Nothing is chosen by a held-out prompt."""
    sizes = {"train": numbers.train, "dev": numbers.dev, "held_out": numbers.held_out}
    world = load_world(part.world, sizes, part.prefix_tokens)
    arena = Arena(world, folder, part.train | numbers.settings)
    say(f"{world.name}, {piece}: {len(world.train)} training, {len(world.dev)} dev and {len(world.held_out)} held-out prompts")
    groups: dict[str, list[Player]] = {}
    out: dict[str, Any] = {}
    if piece == RIVALS:
        groups, chosen = rivals(part, numbers, arena, say)
        out |= chosen
        groups["static"] = family("joint", arena) if part.front and numbers.static else []
    else:
        groups = learned(part, numbers, arena, int(piece), say)
    found: dict[str, dict[str, list[Any]]] = {}
    names = [*part.measures, *(part.front or ()), *(f"vote:{n}" for n in part.curve if n <= numbers.copies)]
    for group, players in groups.items():
        for player in players:
            say(f"  plays: {player.name}")
            rollouts = arena.play(player, "held_out", numbers.copies)
            for name in dict.fromkeys([*names, *(part.describe if group == "heads" else [])]):
                value_SP = measure(name, arena, player, "held_out", rollouts, numbers.copies)
                found.setdefault(name, {})[player.name] = [
                    [None if v != v else round(v, 5) for v in row] for row in value_SP.tolist()
                ]
    return out | {
        "world": world.name, "tasks": [task_of(prompt) for prompt in arena.prompts("held_out")],
        "numbers": {p: len(getattr(world, p)) for p in sizes} | {"copies": numbers.copies, "dev_copies": numbers.dev_copies},
        "groups": {name: [player.name for player in players] for name, players in groups.items()}, "values": found,
        "cost": {f"{name}, processor seconds": round(value, 1) for name, value in arena.seconds.items()}
        | {"responses": arena.generated},
    }  # fmt: skip


def task_of(prompt: Any) -> str:
    """The column `task` of a prompt."""
    return str(prompt.columns.get("task", "all"))


def learned(part: Part, numbers: Numbers, arena: Arena, seed: int, say: Say) -> dict[str, list[Player]]:
    """The heads of a training seed; for each subject its controls, and a head for the same reward that sees statistics alone."""
    heads = []
    for name in chosen_heads(part, numbers):
        say(f"  head {name}, seed {seed}")
        heads.append(arena.fit(name, {"seed": seed} | part.heads[name]))
    subjects = [head for head in heads if head.name in subjects_of(part, numbers)]
    rules = [arena.rival(head) for head in subjects]
    engine, held_out = TransformersEngine(arena.world.model, arena.world.tokenizer), arena.prompts("held_out")
    controlled = []
    for head in subjects:
        choices = choices_of(engine, held_out, arena.play(head, "held_out", numbers.copies), head.policy)
        stage = controls(head.policy, choices, held_out, numbers.copies)
        built = {one.name: one.build(None, "greedy") for one in stage.compared}  # type: ignore[arg-type]
        for name in (MEAN, SHUFFLED, BINNED):  # a head that always chooses the same is its own control
            controlled.append(Player(f"{name} ({head.name})", built.get(name) or head.policy, f"{head.key} {name}"))
    return {"heads": heads, "rules": rules, "controls": controlled}


def rivals(part: Part, numbers: Numbers, arena: Arena, say: Say) -> tuple[dict[str, list[Player]], dict[str, Any]]:
    """Constants and rules, tuned on dev prompts; and which constant is best there, for each measure and for each task."""
    space = KnobSpace.of(*part.train["knobs"])
    fixed, best, by_task = constants(space), dict[str, str](), dict[str, str]()
    task_P = np.array([task_of(prompt) for prompt in arena.prompts("dev")])
    rules: dict[str, Player] = {}
    for target in part.tune_on or part.measures[:1]:
        say(f"  rivals, tuned for {target}")
        values = {p.name: dev_values(p, arena, target, numbers.dev_copies) for p in fixed}
        best[target] = max(values, key=lambda name: float(values[name].mean()))
        for task in sorted(set(task_P.tolist())) if target == part.measures[0] else []:
            by_task[task] = max(values, key=lambda name: float(values[name][:, task_P == task].mean()))
        for name in baselines_of(part, numbers):
            if name != "statistics":
                rule = tuned(name, arena, target, numbers.dev_copies, part.hand)
                rules[rule.name] = rule
    return {"constants": fixed, "standard": standard(space, str(part.train.get("level", "token")), arena.world.tokenizer),
            "rules": list(rules.values())}, {"best": best, "by_task": by_task}  # fmt: skip


def baselines_of(part: Part, numbers: Numbers) -> list[str]:
    """The rivals of a part at a size; a head on statistics is always one of them."""
    return list(
        dict.fromkeys(["statistics", *(n for n in part.baselines if numbers.baselines is None or n in numbers.baselines)])
    )


def chosen_heads(part: Part, numbers: Numbers) -> list[str]:
    """The heads of a part that a size trains, in the recipe's order."""
    return [name for name in part.heads if numbers.heads is None or name in numbers.heads]


def subjects_of(part: Part, numbers: Numbers) -> list[str]:
    """The heads that have tables and controls of their own."""
    heads = chosen_heads(part, numbers)
    return [name for name in part.subjects if name in heads] or heads[:1]


def put_together(rival: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]) -> Field:
    """All pieces of a part as one field. The same held-out prompts were answered with the same random numbers in each."""
    values: Values = {}
    for name, found in rival["values"].items():
        values[name] = {player: stack([value_SP]) for player, value_SP in found.items()}
    for name, found in seeds[0]["values"].items():
        values.setdefault(name, {}).update({who: stack([seed["values"][name][who] for seed in seeds]) for who in found})
    groups = {kind: [*seeds[0]["groups"].get(kind, []), *rival["groups"].get(kind, [])]
              for kind in ("heads", "constants", "rules", "standard", "controls")}  # fmt: skip
    if len(rival["by_task"]) > 1:
        groups["standard"].append(PER_TASK)
        chosen = [rival["by_task"].get(task, rival["best"][next(iter(rival["best"]))]) for task in rival["tasks"]]
        for found in values.values():
            if chosen[0] in found:
                found[PER_TASK] = np.stack([found[name][:, :, p] for p, name in enumerate(chosen)], -1)
    return Field(values, groups, rival["best"], np.array(rival["tasks"]), rival["groups"].get("static", []))


def stack(pieces: Sequence[Sequence[Sequence[float | None]]]) -> Floats:
    """(R, S, P), with NaN for None."""
    return np.array(pieces, dtype=float)


def correct(parts: Iterable[tuple[Part, Numbers, Field]]) -> None:
    """One correction (Holm) for all comparisons of a recipe: conclusions have half of the error, all tables the other."""
    tested: list[tuple[Field, Key, bool]] = []
    for part, numbers, one in parts:
        main = {key for claim in part.claims for key in compared(claim, one, subjects_of(part, numbers)[0], part.measures[0])}
        rows = [key for subject in subjects_of(part, numbers) for name in part.measures for task in one.task_names()
                for key in one.rows(name, subject, task)]  # fmt: skip
        tested += [(one, key, key in main) for key in dict.fromkeys([*main, *rows])]
    share = max(len(tested) / max(sum(is_main for *_, is_main in tested), 1) - 1, 1.0)
    p = holm([one.compare(key).p for one, key, _ in tested], [share if is_main else 1.0 for *_, is_main in tested])
    for (one, key, _), value in zip(tested, p, strict=True):
        one.corrected[key] = value


def summary(
    part: Part, numbers: Numbers, one: Field, rival: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Everything about one part, as plain data for `results/`."""
    subjects, heads = subjects_of(part, numbers), one.groups["heads"]
    describe = {name: {head: {task: rounded(one.interval(name, head, task)) for task in one.task_names()} for head in heads}
                for name in part.describe}  # fmt: skip
    n = rival["numbers"]
    sizes = {"seeds": len(seeds), "learned_from": n["train"] * part.train["rollouts"], "tuned_on": n["dev"] * n["dev_copies"]}
    out: dict[str, Any] = {
        "world": rival["world"], "numbers": n | sizes, "groups": one.groups, "best": one.best,
        "by_task": rival["by_task"], "described": describe,
        "tables": [one.table(name, who, task) for who in subjects for name in part.measures for task in one.task_names()],
    }  # fmt: skip
    if part.curve:
        votes = [n for n in part.curve if f"vote:{n}" in one.values]
        out["curve"] = {who: {n: rounded(one.interval(f"vote:{n}", who)) for n in votes} for who in one.players}
    if part.front:
        out["front"] = front(part.front, one)
    out["claims"] = [judge(claim, one, subjects[0], part.measures[0]) for claim in part.claims]
    out["cost"] = {name: round(sum(piece["cost"][name] for piece in (rival, *seeds)), 1) for name in rival["cost"]}
    return out


def front(axes: tuple[str, str], one: Field) -> dict[str, Any]:
    """Where every policy stands between two measures, and what the heads' curve adds to the front of everything static."""

    def points(group: list[str]) -> Floats:
        return np.stack([np.stack([np.nanmean(one.by_run(axis, player), 0) for axis in axes], -1) for player in group])

    tuned_joint = [name for name in one.groups["rules"] if name.startswith("best joint")]
    static = [*one.groups["constants"], *tuned_joint, *one.static]
    gain, low, high = hypervolume_gain(points(one.groups["heads"]), points(static))
    everybody = [name for name in (*one.players, *one.static) if name in one.values[axes[0]]]
    means = {player: points([player])[0].mean(0).round(5).tolist() for player in everybody}
    return {"axes": list(axes), "means": means, "static": static, "hypervolume gain": [gain, low, high]}
