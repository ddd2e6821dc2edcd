"""Tables of the instruct model: heads against their controls and all rivals, transfer, votes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import latentknobs as lk
from benchmarks.instruct.arena import Arena
from benchmarks.instruct.rivals import CONSTANTS, LAST, rules
from benchmarks.paper.statistics import vote_accuracy
from latentknobs.evaluation.statistics import estimate, holm
from latentknobs.policies import Policy
from latentknobs.policies.controls import MeanShift, Shuffle
from latentknobs.rewards.answer import final_number

Floats = NDArray[np.float64]


class Sizes(NamedTuple):
    """Held-out prompts, responses to each, and training prompts (`TUNE_COPIES` responses) to tune rivals on.

    Controls and constants of a head's grid may answer the first `few` prompts, so often, alone: then all are compared on these.
    All others may answer every prompt again, with so many `sets` of other random numbers.
    """

    prompts: int
    copies: int
    tune: int
    few: tuple[int, int] | None = None
    sets: int = 1

    @property
    def controls(self) -> "Sizes":
        """What controls answer."""
        return Sizes(*self.few, self.tune) if self.few else self


TUNE_COPIES, FIRST = 8, 16  # responses to each tuning prompt; prompts of the first heat


def heads(folder: Path, only: Sequence[str] = (), rivals: bool = False) -> dict[str, list[Policy]]:
    """The policies of each trained variant, one for each seed; or their rivals, of statistics alone, if any."""
    found: dict[str, list[Policy]] = {}
    for path in sorted(folder.glob("*-*")):
        name = path.name.rpartition("-")[0]
        if not only or name in only:
            adapter = lk.KnobAdapter.from_pretrained(path)
            policy = adapter.rival_policy() if rivals else adapter.policy()
            if policy is not None:  # a head that was trained alone has no rival
                found.setdefault(name, []).append(policy)
    return found


def controls(arena: Arena, policies: Sequence[Policy], tune: int) -> Iterator[tuple[str, list[Policy]]]:
    """Mean shift and both shuffles, each seed's from its own choices on training prompts."""
    choices = [arena.choices(policy, tune) for policy in policies]
    pairs = list(zip(policies, choices, strict=True))
    yield "mean shift", [MeanShift(p.space, c) for p, c in pairs]
    yield "shuffle", [Shuffle(p.space, p.segmenter, c) for p, c in pairs]
    yield "shuffle in bins", [Shuffle(p.space, p.segmenter, c, binned=True) for p, c in pairs]


def score(arena: Arena, policies: Sequence[Policy | str], sizes: Sizes, held_out: bool = True) -> tuple[Floats, str]:
    """(S, P) mean rewards of each policy and prompt, and the first text."""
    count, copies = (sizes.prompts, sizes.copies) if held_out else (sizes.tune, TUNE_COPIES)
    seeds = range(sizes.sets if held_out else 1)
    found = [
        [arena.score(policy, held_out=held_out, count=count, copies=copies, seed=seed) for seed in seeds] for policy in policies
    ]
    return np.stack([np.hstack([reward_PC for reward_PC, _ in one]).mean(1) for one in found]), found[0][0][1][0]


def finalists(heat: Mapping[str, Floats], task_P: NDArray[np.str_]) -> list[str]:
    """The best quarter of some policies by their (P,) rewards, over all prompts and over those of each task."""
    kept = set()
    for is_in_P in [np.ones(len(task_P), bool), *(task_P == task for task in set(task_P))]:
        order = sorted(heat, key=lambda name: -heat[name][is_in_P].mean())
        kept |= {*order[: -(-len(order) // 4)]}
    return [name for name in heat if name in kept]


def tuning(arena: Arena, names: Sequence[str], sizes: Sizes) -> dict[str, Floats]:
    """(P,) rewards on all tuning prompts of those that a first heat, on a quarter of them but `FIRST` at least, leaves."""
    first = sizes._replace(tune=min(sizes.tune, max(FIRST, sizes.tune // 4)))
    task_P = np.array([row["task"] for row in arena.task.rows(False, first.tune)])
    heat = {name: score(arena, [name], first, held_out=False)[0][0] for name in names}
    return {name: score(arena, [name], sizes, held_out=False)[0][0] for name in finalists(heat, task_P)}


def tuned(arena: Arena, sizes: Sizes) -> dict[str, Floats]:
    """(1, P) of the best constant and the best rule of training prompts, also one for each task, of greedy and of the mixture."""
    out: dict[str, Floats] = {}
    tasks = {held_out: np.array([row["task"] for row in arena.task.rows(held_out, count)])
             for held_out, count in ((True, sizes.prompts), (False, sizes.tune))}  # fmt: skip
    for kind, names in (("constant", CONSTANTS), ("rule", [*CONSTANTS, *rules(arena.task.kind)])):
        dev = tuning(arena, names, sizes)
        best = max(dev, key=lambda name: dev[name].mean())
        out[f"best {kind}: {best.partition(':')[2] if kind == 'constant' else best}"] = score(arena, [best], sizes)[0]
        if len(set(tasks[False])) > 1:
            each = {task: max(dev, key=lambda name: dev[name][tasks[False] == task].mean()) for task in sorted(set(tasks[False]))}
            by_task = {task: score(arena, [name], sizes)[0][0] for task, name in each.items()}
            mixed_P = np.array([by_task[task][p] for p, task in enumerate(tasks[True])])
            out[f"best {kind} of each task, told by the prompt: {each}"] = mixed_P[None]
    out["greedy"] = score(arena, ["constant:temperature=0"], sizes)[0]
    out["uniform mixture"] = score(arena, LAST, sizes)[0]
    return out


def grid(arena: Arena, space: lk.KnobSpace, sizes: Sizes) -> dict[str, Floats]:
    """(1, P) of every constant of a head's own grid."""
    names = ["constant:" + ",".join(f"{name}={value:g}" for name, value in one.items()) for one in space.options]
    return {name: score(arena, [name], sizes)[0] for name in names}


def compare(
    arena: Arena, head: str, only: Sequence[str], sizes: Sizes, constants: bool = False, statistics: bool = True
) -> None:  # fmt: skip
    """Prints and writes (comparison-HEAD.json) how far one variant is ahead of its controls, its rival and everything else."""
    found = heads(arena.folder / "adapters")
    subject = found.pop(head)
    rows: dict[str, Floats] = {}
    mine_SP, text = score(arena, subject, sizes)
    print(f"{head}: {mine_SP.mean():.3f} {mine_SP.mean(1).round(3).tolist()} {text[:200]!r}", flush=True)
    others = {name: policies for name, policies in found.items() if not only or name in only}
    rivals = heads(arena.folder / "adapters", [head, *only], rivals=True) if statistics else {}
    if whose := next((name for name in (head, *only) if name in rivals), None):  # its own, or that of the first other
        others = {f"the rival of {whose} on statistics": rivals[whose]} | others
    for name, policies in [*controls(arena, subject, sizes.tune), *others.items()]:
        rows[name], text = score(arena, policies, sizes if name in others else sizes.controls)
        print(f"{name}: {rows[name].mean():.3f} {text[:120]!r}", flush=True)
    every = grid(arena, subject[0].space, sizes.controls) if constants else {}
    report(arena.folder / f"comparison-{head}.json", head, mine_SP, rows | tuned(arena, sizes) | every)


def report(path: Path, head: str, mine_SP: Floats, rows: dict[str, Floats]) -> None:
    """A table with one Holm correction, on the prompts that all answered; seeds are paired where both have them."""
    P = min(one_SP.shape[1] for one_SP in (mine_SP, *rows.values()))
    mine_SP, rows = mine_SP[:, :P], {name: other_SP[: len(mine_SP), :P] for name, other_SP in rows.items()}
    intervals = {}
    for name, other_SP in rows.items():
        ours_SP = mine_SP[: len(other_SP)] if len(other_SP) > 1 else mine_SP
        intervals[name] = estimate(ours_SP - other_SP, ends=(-1, 1))
    corrected = holm([interval.p for interval in intervals.values()])
    lines = [{"policy": head, "reward": float(mine_SP.mean()), "seeds": mine_SP.mean(1).tolist()}]
    for (name, interval), p in zip(intervals.items(), corrected, strict=True):
        lines.append({"policy": name, "reward": float(rows[name].mean()), "seeds": rows[name].mean(1).tolist(),
                      f"{head} ahead by": str(interval), "p": round(p, 4)})  # fmt: skip
    path.write_text(json.dumps(lines, indent=1), encoding="utf-8")
    print(f"| policy | reward | {head} ahead by | corrected p |\n|---|---|---|---|")
    for line in lines:
        print(
            f"| {line['policy']} | {line['reward']:.3f} | {line.get(f'{head} ahead by', '')} | {line.get('p', '')} |", flush=True
        )


def transfer(arena: Arena, folder: Path, source: str, head: str, sizes: Sizes) -> None:
    """Prints and writes how heads of another task or model fare, against this task's own heads, tuned constant and rule."""
    mine_SP, _ = score(arena, heads(folder, [head])[head], sizes)
    own = heads(arena.folder / "adapters", [head])
    rows = {f"own {name}": score(arena, policies, sizes)[0] for name, policies in own.items()}
    report(arena.folder / f"transfer-{source}-{head}.json", f"{head} of {source}", mine_SP, rows | tuned(arena, sizes))


def votes(arena: Arena, head: str, prompts: int, copies: int, counts: Sequence[int]) -> None:
    """Prints and writes the exact accuracy of a majority vote among so many responses."""
    rows = arena.prompts(True, prompts)
    right = [final_number(str(prompt.columns["answer"]), None) for prompt in rows]
    table: dict[str, dict[int, list[list[float]]]] = {}
    for name, policies in (heads(arena.folder / "adapters", [head]) | {name: [name] for name in CONSTANTS[:7]}).items():
        for policy in policies:
            _, texts = arena.score(policy, held_out=True, count=prompts, copies=copies)
            answers = [final_number(text, None) for text in texts]
            for count in counts:
                each_P = [vote_accuracy(answers[p * copies : (p + 1) * copies], right[p], count) for p in range(len(rows))]
                table.setdefault(name, {}).setdefault(count, []).append(each_P)
        print(name, {count: round(float(np.mean(table[name][count])), 3) for count in counts}, flush=True)
    out = {name: {count: np.array(each).tolist() for count, each in row.items()} for name, row in table.items()}
    (arena.folder / f"votes-{head}.json").write_text(json.dumps(out), encoding="utf-8")
