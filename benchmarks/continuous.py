"""Continuous values of knobs: what likelihood learns, and whether any objective learns more than a better mean.

    python -m benchmarks.continuous compare testbed --seed 0 --part preference   # or stories, math; parts may run side by side
    python -m benchmarks.continuous table                          # all seeds whose parts are there, from runs/continuous
    python -m benchmarks.continuous optimum                        # global optima of likelihood on self-generated text
    python -m benchmarks.continuous steering                       # control words of the testbed
    python -m benchmarks.continuous overhead                       # a step with a value head over a greedy one

stories260K and TinyStories are taken from LATENTKNOBS_DATA (default data; `make data`).

What would refute that an objective learns control at each token, written down before the runs: the interval of its gain over
its mean shift, or over its shuffle, holds 0.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

import latentknobs as lk
from benchmarks.continuous_levels import optimum, overhead, steering
from benchmarks.continuous_world import HELD_OUT, KNOBS, LEARNERS, RUNS, TUNE, World
from latentknobs.evaluation.statistics import estimate, holm
from latentknobs.learners.end_to_end.learner import neutral_policy
from latentknobs.policies import ConstantPolicy, GreedyPolicy, Policy
from latentknobs.policies.controls import MeanShift, Shuffle

WORLDS = {"testbed": 4, "stories": 4, "math": 8}  # times that a held-out prompt is answered
PASSES = {"testbed": 1.0, "math": 0.5}  # least reward of a response that counts as right
CONTROLS = ("mean shift", "shuffle", "shuffle in bins")
RIVALS, TUNED = "rivals", "best static, tuned"


@click.group()
@click.option("--threads", default=1, show_default=True)
def main(threads: int) -> None:
    """Experiments with continuous values."""
    torch.set_num_threads(threads)
    RUNS.mkdir(parents=True, exist_ok=True)


for command in (optimum, steering, overhead):
    main.add_command(command)


@main.command()
@click.argument("world", type=click.Choice(list(WORLDS)))
@click.option("--seed", "seeds", default=(0, 1, 2), show_default=True, multiple=True)
@click.option("--part", "parts", default=(*LEARNERS, RIVALS), show_default=True, multiple=True)
def compare(world: str, seeds: tuple[int, ...], parts: tuple[str, ...]) -> None:
    """Learners on the same rollouts, each with its controls, and the rivals, on held-out prompts."""
    here = World(world)
    for seed in seeds:
        for part in parts:
            path = RUNS / f"{world}-{seed}-{part}.json"
            if not path.exists():
                found = of_rivals(here, seed) if part == RIVALS else of_learner(here, part, seed)
                path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def of_learner(here: World, name: str, seed: int) -> dict[str, Any]:
    """Rewards of a trained head and of the controls made of its choices on training prompts."""
    policy = here.fit(name, seed).policy()
    tune = here.train[:TUNE]
    choices = here.choices(here.answers(policy, tune, 1, 101 + seed)[0], tune)
    shift = MeanShift(policy.space, choices)
    compared: dict[str, Policy] = {name: policy, f"{name}: mean shift": shift}
    for control in CONTROLS[1:]:
        binned = control == CONTROLS[2]
        compared[f"{name}: {control}"] = Shuffle(policy.space, policy.segmenter, choices, binned=binned, seed=seed)
    mean, std = shift.value_J.tolist(), choices.value_MJ.std(0).tolist()
    return {"rewards": rewards(here, compared, seed), "chosen": {"mean": mean, "std": std}}


def of_rivals(here: World, seed: int) -> dict[str, Any]:
    """Rewards of greedy decoding, the LM itself and every constant; and which constant is best on training prompts."""
    space = lk.KnobSpace.of(*KNOBS)
    constants: dict[str, Policy] = {space.label(k): ConstantPolicy(space, k) for k in range(space.K)}
    worth = {label: here.answers(policy, here.train[:TUNE], 2, 101 + seed)[1].mean() for label, policy in constants.items()}
    found = rewards(here, {"greedy": GreedyPolicy(), "T = 1": neutral_policy(space)} | constants, seed)
    return {"rewards": found, "tuned": max(worth, key=lambda label: worth[label])}


def rewards(here: World, policies: dict[str, Policy], seed: int) -> dict[str, Any]:
    """(copies, prompts) rewards of each policy on held-out prompts."""
    found = {}
    for label, policy in policies.items():
        reward_CP = here.answers(policy, here.held_out[:HELD_OUT], WORLDS[here.name], 1001 + seed)[1]
        found[label] = reward_CP.round(6).tolist()
        print(f"{label}: {reward_CP.mean():.4f}", flush=True)
    return found


def collected(world: str, folder: Path) -> list[dict[str, Any]]:
    """What training seeds found whose rivals are there: rewards of policies, and the values that heads chose."""
    seeds = []
    for path in sorted(folder.glob(f"{world}-*-{RIVALS}.json")):
        parts = {part: path.with_name(path.name.replace(RIVALS, part)) for part in (*LEARNERS, RIVALS)}
        read = {part: json.loads(one.read_text(encoding="utf-8")) for part, one in parts.items() if one.exists()}
        chosen = {name: read[name]["chosen"] for name in LEARNERS if name in read}
        seed: dict[str, Any] = {"tuned": read[RIVALS]["tuned"], "chosen": chosen}
        seed["rewards"] = {label: np.array(value) for one in read.values() for label, value in one["rewards"].items()}
        seed["rewards"][TUNED] = seed["rewards"][seed["tuned"]]
        seeds.append(seed)
    return seeds


@main.command()
@click.option("--from", "folder", default=RUNS, show_default=True, type=click.Path(exists=True, path_type=Path))
def table(folder: Path) -> None:
    """Rewards, gains over rivals and controls, and Pass@k: means, and 95 % intervals over prompts and training seeds."""
    for world, copies in WORLDS.items():
        seeds = collected(world, folder)
        if not seeds:
            continue
        print(f"\n## {world}: {len(seeds)} training seeds; tuned constants: {', '.join(one['tuned'] for one in seeds)}\n")
        levels(seeds)
        controls(seeds)
        if world in PASSES:
            passes(seeds, copies, PASSES[world])


def labels(seeds: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Each policy with the seeds that it was run with."""
    found = dict.fromkeys(label for one in seeds for label in one["rewards"])
    return {label: [one for one in seeds if label in one["rewards"]] for label in found}


def worth(seeds: list[dict[str, Any]], label: str, of: Callable[[Any], Any] | None = None) -> NDArray[Any]:
    """(S, P) of a policy: by default its mean reward at each prompt."""
    return np.stack([(of or (lambda reward_CP: reward_CP.mean(0)))(one["rewards"][label]) for one in seeds])


def levels(seeds: list[dict[str, Any]]) -> None:
    """The mean reward of every policy, and its gain over the best static one."""
    print(f"| policy | seeds | reward | over {TUNED} | mean (spread) of temperature, top-p |\n|---|---|---|---|---|")
    for label, own in labels(seeds).items():
        words = ""
        if label in LEARNERS:
            mean_SJ, std_SJ = (np.array([one["chosen"][label][key] for one in own]) for key in ("mean", "std"))
            words = ", ".join(f"{m:.2f} ({s:.2f})" for m, s in zip(mean_SJ.mean(0), std_SJ.mean(0), strict=True))
        own_SP = worth(own, label)
        print(f"| {label} | {len(own)} | {own_SP.mean():.3f} | {estimate(own_SP - worth(own, TUNED))} | {words} |")


def controls(seeds: list[dict[str, Any]]) -> None:
    """Gains of each head over its own controls, with p corrected by Holm over all of them."""
    found = {name: own for name, own in labels(seeds).items() if name in LEARNERS}
    gains = [estimate(worth(own, name) - worth(own, f"{name}: {one}")) for name, own in found.items() for one in CONTROLS]
    cells = [f"{gain}, p = {p:.2g}" for gain, p in zip(gains, holm([gain.p for gain in gains]), strict=True)]
    print("\n| head | over its mean shift | over its shuffle | over its shuffle in bins |\n|---|---|---|---|")
    for i, name in enumerate(found):
        print(f"| {name} | {' | '.join(cells[i * len(CONTROLS) : (i + 1) * len(CONTROLS)])} |")


def passes(seeds: list[dict[str, Any]], copies: int, least: float) -> None:
    """Pass@k by the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), for 1, half and all of the responses."""
    counts = (1, copies // 2, copies)
    print(f"\n| policy, reward of {least:g} or more | {' | '.join(f'Pass@{k}' for k in counts)} |\n|---|---|---|---|")
    for label, own in labels(seeds).items():
        cells = []
        for k in counts:
            pass_SP = worth(own, label, lambda reward_CP, k=k: [unbiased(copies, int(c), k) for c in (reward_CP >= least).sum(0)])  # type: ignore[misc]
            found = estimate(pass_SP, ends=(0, 1))
            cells.append(str(replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))))
        print(f"| {label} | {' | '.join(cells)} |")


def unbiased(n: int, c: int, k: int) -> float:
    """The probability that one of k of n responses, c of which are right, is right."""
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


if __name__ == "__main__":
    main()
