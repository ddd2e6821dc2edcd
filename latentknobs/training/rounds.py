"""One round of LPO: roll out -> score -> pair -> featurise -> optimise, each a stage of files that can be reused."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch

from latentknobs.config import TrainConfig
from latentknobs.content import digest
from latentknobs.data.featurise import featurise
from latentknobs.data.preferences import Preferences, drop_unreachable
from latentknobs.data.prompts import is_held_out
from latentknobs.data.rollouts import Rollout, read_rollouts, write_lines
from latentknobs.data.shard import write_shard
from latentknobs.data.store import FeatureStore
from latentknobs.engines.transformers.frozen import input_device
from latentknobs.evaluation.evaluate import task_of
from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.space import KnobSpace
from latentknobs.learners.lpo.pairs import Pair, pick_pairs
from latentknobs.models.sources import Sources
from latentknobs.policies import BalancedPolicy, HeadPolicy, UniformPolicy
from latentknobs.progress import Advance
from latentknobs.training.diagnostics import Count, Facts
from latentknobs.training.facts import facts_of_round
from latentknobs.training.fitting import PARTS, Fitting, Heads
from latentknobs.training.round_data import prompt_lines, read_pairs
from latentknobs.training.rundir import RunDir, Task
from latentknobs.training.sampling import PolicyRun, count_lines, read_all, read_scores, sample, score_files, shares_model
from latentknobs.training.subject import model_input, reward_input

BASELINE = "entropy"  # the one feature of the baseline head, always the last column of the store


class Round:
    """Round `number` of a run. `previous` holds the heads that sample, are refined, and are referred to.

    Args:
        key: digest of the model, the space, and the level.
    """

    def __init__(
        self, run: RunDir, config: TrainConfig, sources: Sources, space: KnobSpace, segmenter: Segmenter, number: int,
        key: str, previous: Heads | None,
    ) -> None:  # fmt: skip
        self.run, self.config, self.sources, self.space, self.segmenter = run, config, sources, space, segmenter
        self.name = f"round-{number}"
        self.number, self.key, self.previous = number, key, previous
        self.given = sources.preferences if number == 1 else None
        self.prompts = self.given.prompts if self.given else sources.train

    def play(self) -> tuple[Heads, Facts]:
        """The heads after this round, and what it shows about known failures."""
        self._write_prompts()
        rollouts, scores, pairs_path = self._given(self.given) if self.given else self._sampled()
        pairs = read_pairs(pairs_path)
        used = sorted({n for pair in pairs for n in (pair.chosen, pair.rejected)})
        key = f"{self.key} {model_input(self.prompts)} {self.run.content([*rollouts, pairs_path])}"
        store = self._features(rollouts, used, key)
        place = {n: i for i, n in enumerate(used)}
        local = [Pair(p.prompt, place[p.chosen], place[p.rejected]) for p in pairs]
        if self.given:
            local, sentence = drop_unreachable(local, set(store.unreachable))
            self.run.say(sentence)
        train, held_out = self._validation_split(local)
        device = input_device(self.sources.model)
        fitting = Fitting(self.run, self.config, self.space, self.number, device, self.previous)
        heads = fitting.heads(store, train, held_out, f"{key} {self.config.digest('features')}")
        asked = [(rollout.prompt, len(rollout.ids)) for rollout in read_all(rollouts)]
        lengths = [(asked[pair.chosen][1], asked[pair.rejected][1]) for pair in pairs]
        scored = {"prompt_N": [prompt for prompt, _ in asked], "reward_N": read_scores(scores)} if scores else {}
        return heads, self._facts(heads, store, train, held_out, lengths=lengths, **scored)

    def _facts(
        self, heads: Heads, store: FeatureStore, train: list[Pair], held_out: list[Pair], **told: Any
    ) -> Facts:  # fmt: skip
        return facts_of_round(
            heads.main, store.columns(PARTS["main"]), train, held_out, self.config,
            options=[self.space.label(k) for k in range(self.space.K)], task_P=[task_of(prompt) for prompt in self.prompts],
            skipped=Count(store.skipped, store.total), reference=self.previous.main if self.previous else None,
            processes=self.run.processes, **told,
        )  # fmt: skip

    def _write_prompts(self) -> None:
        """What the rollouts' indices of prompts mean, for whoever reads them later."""
        key = f"{model_input(self.prompts)} {reward_input(self.prompts)}"
        task = Task(
            f"{self.name}/prompts.jsonl",
            key,
            lambda path, advance: write_lines(path, prompt_lines(self.prompts)),
            len(self.prompts),
        )
        self.run.stage(f"{self.name}/prompts", [task])

    def _sampled(self) -> tuple[list[Path], list[Path], Path]:
        """Rollouts of this round's policy, their scores, and the pairs that these make."""
        run, config, sources = self.run, self.config, self.sources
        if self.previous is None:
            first = {"uniform": UniformPolicy, "balanced": BalancedPolicy}[config.first_round]
            asked = PolicyRun("", first(self.space, self.segmenter), config.first_round)
        else:
            policy = HeadPolicy(self.previous.main, self.space, self.segmenter, config.features, "sample")
            asked = PolicyRun("", policy, f"{self.previous.key} {config.features}")
        [rollouts] = sample(
            run, config, sources, self.name, sources.train, [asked], copies=config.rollouts,
            seed=config.seed * 1009 + self.number, key=self.key,
        )  # fmt: skip
        scores = score_files(run, sources.reward, self.name, sources.train, rollouts)
        second = score_files(run, sources.second, self.name, sources.train, rollouts, "second_scores") if sources.second else None

        def make(path: Path, advance: Advance) -> None:
            prompt_N = [rollout.prompt for rollout in read_all(rollouts)]
            second_N = read_scores(second) if second else None
            pairs = pick_pairs(
                prompt_N, read_scores(scores), config.pair_rule, second_N=second_N, top=config.top,
                per_prompt=config.pairs_per_prompt, seed=config.seed,
            )  # fmt: skip
            write_lines(path, pairs)

        key = config.digest("examples", str(run.content([*rollouts, *scores, *(second or ())])))
        return rollouts, scores, run.stage(f"{self.name}/pairs", [Task(f"{self.name}/pairs.jsonl", key, make)])[0]

    def _given(self, given: Preferences) -> tuple[list[Path], list[Path], Path]:
        """Pairs from elsewhere, written down like our own."""
        self.run.say(given.summary)
        key = digest([[r.prompt, r.ids] for r in given.rollouts], given.pairs)

        def task(name: str, rows: Sequence[Rollout] | Sequence[Pair]) -> Task:
            return Task(f"{self.name}/{name}", key, lambda path, advance: write_lines(path, rows), len(rows))

        [rollouts] = self.run.stage(f"{self.name}/rollouts", [task("rollouts/00000.jsonl", given.rollouts)])
        return [rollouts], [], self.run.stage(f"{self.name}/pairs", [task("pairs.jsonl", given.pairs)])[0]

    def _features(self, rollouts: Sequence[Path], used: Sequence[int], key: str) -> FeatureStore:
        """What the head is trained on: the responses `used`, in their order."""
        config, sources, size = self.config, self.sources, self.config.shard_size
        key = config.digest("features", key)
        ends = list(accumulate(map(count_lines, rollouts)))
        chunks = [used[start : start + size] for start in range(0, len(used), size)]

        def task(number: int) -> Task:
            def make(path: Path, advance: Advance) -> None:
                made = featurise(
                    sources.model, self.prompts, pick_rows(rollouts, ends, chunks[number]), self.space, self.segmenter,
                    (*config.features, BASELINE), floor=config.floor, min_spread=config.min_spread,
                    unreachable="drop" if self.given else "refuse", dtype=getattr(torch, config.feature_dtype),
                    batch_size=config.read_batch, advance=advance,
                )  # fmt: skip
                write_shard(path, made)

            file = f"{self.name}/features/{number:05d}.safetensors"
            return Task(file, f"{key} {number}", make, len(chunks[number]))

        tasks = [task(number) for number in range(len(chunks))]
        paths = self.run.stage(f"{self.name}/features", tasks, together=shares_model(config))
        device = input_device(sources.model)
        store = FeatureStore(paths, ram_bytes=config.feature_ram * 1e9, device=device)
        if store.skipped:
            share = store.skipped / store.total
            self.run.say(
                f"{self.name}/features: {store.skipped:,} of {store.total:,} segments ({share:.0%}) left out by min_spread"
            )
        return store

    def _validation_split(self, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
        def held(pair: Pair) -> bool:
            return is_held_out(f"validation {self.prompts[pair.prompt].text}", self.config.validation)

        train, held_out = [p for p in pairs if not held(p)], [p for p in pairs if held(p)]
        return (train, held_out) if train else (list(pairs), [])


def pick_rows(paths: Sequence[Path], ends: Sequence[int], rows: Sequence[int]) -> list[Rollout]:
    """Some rollouts by their place among all (rising), with at most one file in memory at a time.

    Args:
        ends: how many rollouts there are up to the end of each file.
    """
    picked: list[Rollout] = []
    for file, mine in groupby(rows, key=lambda row: bisect_right(ends, row)):
        made = read_rollouts(paths[file])
        first = ends[file] - len(made)
        picked += [made[row - first] for row in mine]
    return picked
