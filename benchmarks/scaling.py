"""How much does a learned temperature gain with more pairs, more rollouts per prompt, and a larger LM, and where does it stop?

    python -m benchmarks.scaling --data $LATENTKNOBS_DATA

Trains three LMs (see `scaling_models`), samples one pool of rollouts from each, fits heads to nested subsets of it (see
`scaling_plan`), and compares all of them with the tuned best constant on the same held-out prompts of the testbed's mixture,
at token level. Everything finished is kept below `--out`, so a run that was stopped goes on; another plan needs another folder.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.fitting import fit_pairs
from benchmarks.scaling_models import load_model, ready_models, training_of
from benchmarks.scaling_pages import save_pages, summarise, tables
from benchmarks.scaling_plan import SHALLOW, Cell, Plan, choose_pairs
from latentknobs import testbed
from latentknobs.config import TrainConfig
from latentknobs.data.examples import Pair
from latentknobs.data.featurise import featurise
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, read_lines, roll_out, write_lines
from latentknobs.data.scores import score_rollouts
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import ConstantPolicy, HeadPolicy, Policy, UniformPolicy

TASK = "mixture"
FULL = Plan(pool={"mini": 4_000, "small": 12_000, "packaged": 4_000})
TINY = Plan(
    pool={"mini": 24, "small": 40, "packaged": 24}, prompts=40, tokens=30_000, deep=20, pair_counts=(8, 20),
    fixed_pairs=8, steps=20, eval_size=6, tune_size=6, seeds=2,
)  # fmt: skip
HIDDEN = 128
CHUNK = 500  # prompts of which the rollouts are kept in one file
BATCH = 512
VALIDATION = 10  # every tenth pair chooses the step


class Bench:
    """One LM: its rollouts, its tuned best constant, its heads, and what they earn."""

    def __init__(self, out: Path, size: str, plan: Plan) -> None:
        self.out, self.size, self.plan = out / size, size, plan
        self.model, self.tokenizer = load_model(out, size), testbed.load_tokenizer()
        self.space, self.segmenter = KnobSpace.of("temperature"), Every(1)
        everything = make_prompts(testbed.prompts(TASK, "train", plan.prompts), self.tokenizer)
        self.prompts = everything[: plan.pool[size]]
        self.judged = make_prompts(testbed.prompts(TASK, "eval", plan.eval_size), self.tokenizer)

    def run(self) -> None:
        """Samples, tunes, fits and judges whatever is missing."""
        pool, rewards = self._pool()
        self._constant(self._tune()[1])
        missing = [cell for cell in self._cells() if not self._cell_path(cell).exists()]
        chosen = [[choose_pairs(cell, rewards, seed) for seed in range(self.plan.seeds)] for cell in missing]
        store = Store(self, pool, [pair for by_seed in chosen for pairs in by_seed for pair in pairs])
        for cell, by_seed in zip(missing, chosen, strict=True):
            self._run_cell(cell, by_seed, store)

    def found(self) -> dict[str, Any] | None:
        """Everything that is finished, as plain data; None before the first cell."""
        paths = {cell.name: self._cell_path(cell) for cell in self._cells()}
        cells = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
        if not cells:
            return None
        tuning, best = self._tune()
        return {
            "parameters": self.model.num_parameters(), "training": training_of(self.out.parent, self.size), "tuning": tuning,
            "tuned": self.space.label(best), "constant": self._constant(best), "cells": cells,
            "tasks": [str(prompt.columns["task"]) for prompt in self.judged],
        }  # fmt: skip

    def _cells(self) -> list[Cell]:
        """All cells, those in which axes meet once."""
        return list({cell: None for cells in self.plan.axes(self.size).values() for cell in cells})

    def _pool(self) -> tuple[list[list[Rollout]], list[list[float]]]:
        """The rollouts of every training prompt, and their rewards."""
        pool: list[list[Rollout]] = [[] for _ in self.prompts]
        deep = min(self.plan.deep, len(self.prompts))
        for name, last, copies in (("pool", len(self.prompts), SHALLOW), ("deep", deep, max(self.plan.rollouts) - SHALLOW)):
            for number, first in enumerate(range(0, last, CHUNK)):
                path = self.out / f"{name}-{number:03}.jsonl"
                if not path.exists():
                    part = self.prompts[first : min(first + CHUNK, last)]
                    seed = number + (1_000 if name == "deep" else 0)
                    rollouts = self._roll_out(part, UniformPolicy(self.space, self.segmenter), copies, seed)
                    write_lines(path, [replace(rollout, prompt=rollout.prompt + first) for rollout in rollouts])
                    print(f"{self.size}: {path.name}", flush=True)
                for rollout in read_lines(path, Rollout):
                    pool[rollout.prompt].append(rollout)
        values = iter(rewards_of(self.prompts, [rollout for rollouts in pool for rollout in rollouts]))
        return pool, [[next(values) for _ in rollouts] for rollouts in pool]

    def _roll_out(self, prompts: Sequence[Prompt], policy: Policy, copies: int, seed: int) -> list[Rollout]:
        return roll_out(
            self.model, self.tokenizer, prompts, policy, copies=copies, max_new_tokens=testbed.MAX_NEW_TOKENS, batch_size=BATCH,
            seed=seed,
        )  # fmt: skip

    def _tune(self) -> tuple[dict[str, float], int]:
        """The mean reward of every constant on training prompts, and the index of the best one."""
        path = self.out / "tuning.json"
        if not path.exists():
            prompts = self.prompts[: self.plan.tune_size]
            means = {}
            for k in range(self.space.K):
                rollouts = self._roll_out(prompts, ConstantPolicy(self.space, k), 1, 2_000)
                means[self.space.label(k)] = float(np.mean(rewards_of(prompts, rollouts)))
            path.write_text(json.dumps(means, indent=1), encoding="utf-8")
        means = json.loads(path.read_text(encoding="utf-8"))
        return means, int(np.argmax(list(means.values())))

    def _constant(self, best: int) -> list[list[float]]:
        """(seeds, prompts) rewards of the tuned constant on the held-out prompts."""
        path = self.out / "constant.json"
        if not path.exists():
            policy = ConstantPolicy(self.space, best)
            path.write_text(json.dumps([self._judge(policy, seed)[1] for seed in range(self.plan.seeds)]), encoding="utf-8")
        earned: list[list[float]] = json.loads(path.read_text(encoding="utf-8"))
        return earned

    def _judge(self, policy: Policy, seed: int) -> tuple[list[Rollout], list[float]]:
        """One response to every held-out prompt and its reward; equal seeds are answered with equal random numbers."""
        rollouts = self._roll_out(self.judged, policy, 1, 3_000 + seed)
        return rollouts, rewards_of(self.judged, rollouts)

    def _cell_path(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell.name}.json"

    def _run_cell(self, cell: Cell, chosen: Sequence[Sequence[Pair]], store: "Store") -> None:
        rewards, accuracy, temperature = [], [], []
        values_K = self.space.values_KJ()[:, 0].numpy()
        for seed, pairs in enumerate(chosen):
            rows: list[dict[str, Any]] = []
            head = self._fit(cell, *store.part(pairs), seed, rows)
            rollouts, earned = self._judge(HeadPolicy(head, self.space, self.segmenter), seed)
            rewards.append(earned)
            temperature.append(float(np.mean([values_K[list(rollout.options)].mean() for rollout in rollouts])))
            checks = [row for row in rows if "validation_loss" in row]
            accuracy.append(min(checks, key=lambda row: row["validation_loss"])["validation_accuracy"])
        found = {"pairs": [len(pairs) for pairs in chosen], "accuracy": accuracy, "temperature": temperature, "rewards": rewards}
        path = self._cell_path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(found), encoding="utf-8")
        path.with_suffix(".partial").replace(path)
        print(f"{self.size}: {cell.name}: mean reward {np.mean(rewards):.4f}", flush=True)

    def _fit(self, cell: Cell, cache: FeatureCache, pairs: list[Pair], seed: int, rows: list[dict[str, Any]]) -> OptionHead:
        torch.manual_seed(seed)
        head = OptionHead(self.space, cache.feature_NF.shape[1], HIDDEN)
        head.fit_scaler(*cache.moments())
        held_out = pairs[::VALIDATION]
        train = [pair for i, pair in enumerate(pairs) if i % VALIDATION]
        config = TrainConfig(steps=cell.steps, hidden=HIDDEN, seed=seed)
        return fit_pairs(head, self.space, self.segmenter, cache, train, held_out, config, log=rows.append)


class Store:
    """Features of all responses that some pairs use, read once."""

    def __init__(self, bench: Bench, pool: Sequence[Sequence[Rollout]], pairs: Sequence[Pair]) -> None:
        used = sorted({(pair.prompt, r) for pair in pairs for r in (pair.chosen, pair.rejected)})
        self.place = {which: i for i, which in enumerate(used)}
        print(f"{bench.size}: reading {len(used)} responses", flush=True)
        if used:
            rollouts = [pool[p][r] for p, r in used]
            self.cache = featurise(
                TransformersEngine(bench.model, None), bench.prompts, rollouts, bench.space, bench.segmenter, ("hidden",)
            ).cache

    def part(self, pairs: Sequence[Pair]) -> tuple[FeatureCache, list[Pair]]:
        """The cache of the responses of some pairs only, and the pairs as indices into it."""
        cache = self.cache
        used = sorted({self.place[pair.prompt, r] for pair in pairs for r in (pair.chosen, pair.rejected)})
        start_R, stop_R = cache.start_R1[used], cache.start_R1[[i + 1 for i in used]]
        row_N = torch.cat([torch.arange(a, b) for a, b in zip(start_R.tolist(), stop_R.tolist(), strict=True)])
        columns = {name: column[row_N] for name, column in cache.columns.items()}
        start_R1 = torch.cat([torch.zeros(1, dtype=torch.long), (stop_R - start_R).cumsum(0)])
        new = {old: i for i, old in enumerate(used)}
        local = [Pair(p.prompt, new[self.place[p.prompt, p.chosen]], new[self.place[p.prompt, p.rejected]]) for p in pairs]
        return FeatureCache(cache.feature_NF[row_N], columns, start_R1), local


def rewards_of(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float]:
    """What the testbed's reward gives for each rollout."""
    values: list[float] = np.array([found.value for found in score_rollouts("testbed", prompts, rollouts)], dtype=float).tolist()
    return values


def keep_plan(out: Path, plan: Plan) -> None:
    """Writes the plan into a new folder; refuses a folder of another plan.

    Raises:
        click.ClickException: the folder belongs to another plan.
    """
    path, text = out / "plan.json", json.dumps(asdict(plan), indent=1)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise click.ClickException(
            f"{str(out)!r} holds the results of another plan (see plan.json). Give another --out, or delete it."
        )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="LATENTKNOBS_DATA")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/scaling"), show_default=True)
@click.option("--tiny", is_flag=True, help="A minute's version of everything, to see that it runs; its figures mean nothing.")
@click.option("--report", is_flag=True, help="Run nothing: tables and plot of what is finished.")
@click.option("--threads", default=1, show_default=True)
def main(data: Path, out: Path, tiny: bool, report: bool, threads: int) -> None:
    """Trains the LMs, fits and compares the heads, prints the tables; about an hour on one idle core."""
    torch.set_num_threads(threads)
    plan = TINY if tiny else FULL
    keep_plan(out, plan)
    if not report:
        ready_models(data, out, plan.pool, plan.tokens, *((40, 200) if tiny else ()))
        for size in plan.pool:
            Bench(out, size, plan).run()
    ready = [size for size in plan.pool if (out / size / "model" / "training.json").exists()]
    found = {size: results for size in ready if (results := Bench(out, size, plan).found())}
    if not found:
        raise click.ClickException(f"Nothing is finished in {str(out)!r} yet. Run the same command without --report.")
    summary = summarise(found, plan)
    print(tables(summary))
    save_pages(summary, out)


if __name__ == "__main__":
    main()
