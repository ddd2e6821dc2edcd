"""One round: roll out -> score -> examples -> featurise -> fit, each a stage of files that can be reused, for any learner."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any

import torch

from latentknobs.config import TrainConfig
from latentknobs.content import digest
from latentknobs.data.examples import Example, drop_unreachable
from latentknobs.data.featurise import featurise
from latentknobs.data.preferences import Preferences
from latentknobs.data.prompts import Prompt, group_of, is_held_out
from latentknobs.data.rollouts import Rollout, read_lines, write_lines
from latentknobs.data.shard import write_shard
from latentknobs.data.store import FeatureStore
from latentknobs.engines.served import Drift, measure_drift
from latentknobs.errors import ConfigError
from latentknobs.evaluation.comparison import task_of
from latentknobs.learners.base import Count, Learner
from latentknobs.models.sources import Sources
from latentknobs.policies import CategoricalPolicy
from latentknobs.progress import Advance
from latentknobs.training.diagnostics import Facts
from latentknobs.training.facts import facts_of_round
from latentknobs.training.modules import MAIN, RIVAL, Fitting, FromFiles, Modules
from latentknobs.training.round_data import prompt_lines
from latentknobs.training.rundir import RunDir, Task, explored
from latentknobs.training.sampling import PolicyRun, count_lines, read_all, read_scores, sample, score_files, shares_model
from latentknobs.training.steps import OnPolicy
from latentknobs.training.subject import model_input, reward_input

COMPARED = 64  # responses that are compared with a reading, evenly spread
SHOWN = 32  # prompts that the finished head of a learner on policy answers, for the diagnostics


@dataclass(frozen=True)
class Round:
    """A round of a run."""

    run: RunDir
    config: TrainConfig
    sources: Sources
    learners: Mapping[str, Learner]  # by part: `main` on the run's features, and `rival` on statistics of the logits
    number: int
    key: str  # digest of the model, the space, and the level
    previous: Modules | None  # the modules that explore, are refined, and are referred to

    def result(self) -> tuple[Modules, Facts, list[str]]:
        """Its modules, what it shows about known failures, and what the learner itself finds."""
        if self.learner.on_policy:  # its files then show what its head does now
            modules = self.by_steps()
            return replace(self, previous=modules).from_files(modules)
        return self.from_files()

    def by_steps(self) -> Modules:
        """The modules of a learner on policy."""
        run, config, sources, reward = self.run, self.config, self.sources, self.sources.reward
        lesson = OnPolicy(run, config, sources, self.learners, self.number)
        lesson.check()
        inputs = f"{model_input(sources.train)} {reward_input(sources.train)} {reward.key}"
        key = f"{self.key} {inputs} {config.rollouts} {self.number} {sources.engine.identity}{lesson.start}"
        key = config.digest("features", config.digest("rollouts", key))
        return self.fitting.modules(lesson, key, fresh=bool(reward.unversioned) and not run.resume)

    def from_files(self, modules: Modules | None = None) -> tuple[Modules, Facts, list[str]]:
        """See `result`; the modules are those that have been trained already, if any."""
        run, config, engine, supplied = self.run, self.config, self.sources.engine, self.supplied
        self.write_prompts()
        rollouts = self.write_supplied() if supplied else self.sample()
        scores, second = ([], []) if supplied else self.score(rollouts)
        path = self.write_examples(rollouts, scores, second)
        examples = read_lines(path, Example)
        used = sorted({n for example in examples for n in example.responses})
        key = f"{self.key} {model_input(self.prompts)} {run.content([*rollouts, path])}"
        if engine.drifts and not supplied:
            self.measure_drift(rollouts, key)
        store = self.featurise(rollouts, used, key)
        place = {n: i for i, n in enumerate(used)}
        local = [Example(e.prompt, tuple(place[n] for n in e.responses), e.weight) for e in examples]
        if supplied or store.unreachable:
            local, sentence = drop_unreachable(local, set(store.unreachable))
            run.say(sentence)
        train, held_out = self.validation_split(local)
        reference = self.previous.main if self.previous else None
        lesson = FromFiles(run, config, self.learners, store, train, held_out, reference)
        modules = modules or self.fitting.modules(lesson, f"{key} {config.digest('features')}")
        answers = [(rollout.prompt, len(rollout.ids)) for rollout in read_all(rollouts)]
        facts, findings = facts_of_round(
            self.learner, modules.main, lesson.seen(MAIN), train, held_out, config,
            task_P=[task_of(prompt) for prompt in self.prompts], length_R=[answers[n][1] for n in used],
            prompt_N=[prompt for prompt, _ in answers] if scores else (), reward_N=read_scores(scores),
            skipped=Count(store.skipped, store.total), reference=reference, processes=run.processes,
        )  # fmt: skip
        return modules, facts, findings

    @property
    def name(self) -> str:
        """As in file names and metrics."""
        return f"round-{self.number}"

    @property
    def learner(self) -> Learner:
        """That of the head itself, not of its rival."""
        return self.learners[MAIN]

    @property
    def supplied(self) -> Preferences | None:
        """Preferences from elsewhere, in place of rollouts of this round."""
        return self.sources.preferences if self.number == 1 else None

    @property
    def prompts(self) -> Sequence[Prompt]:
        """Those of its files. A learner on policy learns from all, and its files show what it does now on the first."""
        if self.supplied:
            return self.supplied.prompts
        return self.sources.train[:SHOWN] if self.learner.on_policy else self.sources.train

    @property
    def fitting(self) -> Fitting:
        """Trains its modules."""
        return Fitting(self.run, self.config, self.learners, self.number, self.sources.engine.device, self.previous)

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of the features in the store: those of the head, then those of its rival."""
        return tuple(name for part in (MAIN, RIVAL) for name in self.learners[part].inputs.features)

    def write_prompts(self) -> None:
        """What the rollouts' indices of prompts mean, for later readers."""
        key = f"{model_input(self.prompts)} {reward_input(self.prompts)}"
        self.write("prompts", key, lambda: prompt_lines(self.prompts), len(self.prompts))

    def write(self, what: str, key: str, rows: Callable[[], Iterable[Any]], items: int = 1) -> Path:
        """A stage of one file of JSON lines, whose rows are computed where it is not finished."""

        def make(path: Path, advance: Advance) -> None:
            write_lines(path, rows())

        file = what if "/" in what else f"{what}.jsonl"
        return self.run.stage(f"{self.name}/{what.partition('/')[0]}", [Task(f"{self.name}/{file}", key, make, items)])[0]

    def sample(self) -> list[Path]:
        """Rollouts of the learner's explorer."""
        learner, config = self.learner, self.config
        policy = learner.explorer(self.previous.main if self.previous else None)
        if policy is None:
            raise ConfigError(
                f"The learner {learner.name!r} learns from existing responses, and the run has none. Set preferences, or choose "
                "another learner."
            )
        if learner.needs_options(learner.settings) and not isinstance(policy, CategoricalPolicy):
            raise ConfigError(
                f"With these settings the learner {learner.name!r} learns from the options that responses were sampled with, and "
                f"its explorer, {type(policy).__name__}, chooses values without options. Change the settings "
                f"({learner.settings!r}), or choose another learner."
            )
        [rollouts] = sample(
            self.run, config, self.sources, self.name, self.prompts, [PolicyRun("", policy)],
            copies=config.rollouts, seed=config.seed * 1009 + self.number, key=self.key, spans=self._spans(),
        )  # fmt: skip
        return rollouts

    def _spans(self) -> list[range] | None:
        """The prompts on which the run before has explored already come first, by themselves."""
        after = self.run.after
        known = min(explored(after.folder), len(self.prompts)) if after is not None and self.number == 1 else 0
        return [range(known), range(known, len(self.prompts))] if 0 < known < len(self.prompts) else None

    def score(self, rollouts: Sequence[Path]) -> tuple[list[Path], list[Path]]:
        """Files of the rewards of some rollouts, and of their second scores if there are such."""
        scores = score_files(self.run, self.sources.reward, self.name, self.prompts, rollouts)
        if self.sources.second is None:
            return scores, []
        return scores, score_files(self.run, self.sources.second, self.name, self.prompts, rollouts, "second_scores")

    def write_supplied(self) -> list[Path]:
        """Responses from elsewhere, written down like our own."""
        supplied = self.supplied
        assert supplied is not None
        self.run.say(supplied.summary)
        key = digest([[r.prompt, r.ids] for r in supplied.rollouts])
        return [self.write("rollouts/00000.jsonl", key, lambda: supplied.rollouts, len(supplied.rollouts))]

    def write_examples(self, rollouts: Sequence[Path], scores: Sequence[Path], second: Sequence[Path]) -> Path:
        """What the learner learns from: of scored rollouts, or as supplied."""
        learner = self.learner
        examples = learner.from_preferences(self.supplied) if self.supplied else None

        def rows() -> list[Example]:
            if learner.on_policy:  # nothing is learned from these files: all of their responses are shown
                return [Example(rollout.prompt, (n,)) for n, rollout in enumerate(read_all(rollouts))]
            return examples or learner.examples(read_all(rollouts), read_scores(scores), read_scores(second) if second else None)

        content = self.run.content([*rollouts, *scores, *second])
        key = self.config.digest("examples", f"{learner.version} {content} {digest(examples)}")
        return self.write("examples", key, rows)

    def featurise(self, rollouts: Sequence[Path], used: Sequence[int], key: str) -> FeatureStore:
        """What the learner is trained on: the responses `used`, in their order."""
        config, engine, learner, size = self.config, self.sources.engine, self.learner, self.config.shard_size
        columns = learner.columns(learner.settings)
        key = config.digest("features", f"{key} {sorted(columns)} {learner.version} {engine.identity}")
        drops = engine.drifts or self.supplied is not None
        ends = list(accumulate(map(count_lines, rollouts)))
        chunks = [used[start : start + size] for start in range(0, len(used), size)]

        def task(number: int) -> Task:
            def make(path: Path, advance: Advance) -> None:
                segments = featurise(
                    engine, self.prompts, pick_rows(rollouts, ends, chunks[number]), learner.inputs.space,
                    learner.inputs.segmenter, self.stored, columns, floor=config.floor, min_spread=config.min_spread,
                    unreachable="drop" if drops else "refuse",
                    dtype=getattr(torch, config.feature_dtype), batch_size=config.read_batch, advance=advance,
                    max_new_tokens=config.max_new_tokens, samples=config.rollouts,
                )  # fmt: skip
                write_shard(path, segments)

            file = f"{self.name}/features/{number:05d}.safetensors"
            return Task(file, f"{key} {number}", make, len(chunks[number]))

        tasks = [task(number) for number in range(len(chunks))]
        paths = self.run.stage(f"{self.name}/features", tasks, together=shares_model(config))
        store = FeatureStore(paths, ram_bytes=config.feature_ram * 1e9, device=engine.device)
        if store.skipped:
            share = store.skipped / store.total
            self.run.say(
                f"{self.name}/features: {store.skipped:,} of {store.total:,} segments ({share:.0%}) left out by min_spread"
            )
        return store

    def measure_drift(self, rollouts: Sequence[Path], key: str) -> None:
        """Says how far the engine is from a reading on some rollouts, and writes it to `drift.jsonl`."""
        engine, space = self.sources.engine, self.learner.inputs.space

        def rows() -> list[Drift]:
            every = max(1, sum(map(count_lines, rollouts)) // COMPARED)
            some = list(islice(read_all(rollouts), 0, None, every))
            return [measure_drift(engine, space, [self.prompts[row.prompt].ids for row in some], some)]

        path = self.write("drift", digest(key, self.run.content(rollouts), engine.identity), rows)
        self.run.say(f"{self.name}: {engine.name}: {Drift(**json.loads(path.read_text()))}")

    def validation_split(self, examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
        """Examples to train on, and those of held-out prompts; all of them to train on where the split would leave none."""

        def held(example: Example) -> bool:
            return is_held_out(f"validation {group_of(self.prompts[example.prompt])}", self.config.validation)

        train, held_out = [e for e in examples if not held(e)], [e for e in examples if held(e)]
        return (train, held_out) if train else (list(examples), [])


def pick_rows(paths: Sequence[Path], ends: Sequence[int], rows: Sequence[int]) -> list[Rollout]:
    """Some rollouts by their rising places among all, one file in memory at a time; `ends` count those up to each file's end."""
    picked: list[Rollout] = []
    for file, mine in groupby(rows, key=lambda row: bisect_right(ends, row)):
        file_rows = read_lines(paths[file], Rollout)
        first = ends[file] - len(file_rows)
        picked += [file_rows[row - first] for row in mine]
    return picked
