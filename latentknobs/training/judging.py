"""The evaluation of a run: what its adapter holds is chosen on dev prompts, then it and all rivals answer held-out ones.

A constant does not depend on the head, so its responses are kept when only the training of the head changes.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentknobs.adapter import KnobAdapter
from latentknobs.config import TrainConfig
from latentknobs.content import digest
from latentknobs.data.disk import write_text
from latentknobs.data.rollouts import Rollout
from latentknobs.errors import RunError
from latentknobs.evaluation.comparison import (
    CONTROLLED,
    Compared,
    Rewards,
    Stage,
    best_of,
    choosing,
    constant_of,
    controls,
    fixed,
    judging,
    lineup,
    make_report,
    most_wider,
    numbers_of,
    rewards_of,
    same_as,
    stages,
    task_of,
    widen,
)  # fmt: skip
from latentknobs.evaluation.controls import choices_of
from latentknobs.evaluation.report import HEAD, TRAINED, Report, judged
from latentknobs.files import MB, read_json
from latentknobs.knobs.space import KnobSpace
from latentknobs.models.sources import Sources
from latentknobs.policies import MeanShift
from latentknobs.progress import Advance
from latentknobs.training.choice import CANDIDATES, candidates, sentence, typical_margin, winner
from latentknobs.training.rundir import RunDir, Task
from latentknobs.training.sampling import PolicyRun, answer, read_all

SUMMARY = "evaluation/summary.json"
LARGEST = 512 * MB
LONGEST = 230  # bytes of a policy's name in those of its files, which have at most 255
T = TypeVar("T")


def stages_of(config: TrainConfig, space: KnobSpace, sources: Sources, others: Sequence[Compared] = ()) -> tuple[Stage, ...]:
    """The stages of an evaluation, in which `others` take part, too; without held-out prompts there are none."""
    compared = [*lineup(space, config.rival_features), *others]
    both = stages(compared, sources.dev, sources.evaluation, config.eval_seeds)
    return both if sources.evaluation else ()


def planned(config: TrainConfig, space: KnobSpace, sources: Sources) -> dict[str, int]:
    """The most responses of each stage of the evaluation of a run."""
    if not (both := stages_of(config, space, sources)):
        return {}
    tuning, evaluation = (stage.responses for stage in both)
    dev, held_out = (len(stage.prompts) * config.eval_seeds for stage in both)
    chosen = {} if config.keep_head else {"choice": CANDIDATES * dev}
    tuned = {"tuning": tuning + len(sources.dev), "wider": most_wider(space, both[0])}
    return tuned | chosen | {"evaluation": evaluation + 2 * held_out, "controls": CONTROLLED * held_out}


@dataclass(frozen=True)
class Scorer:
    """Lets the policies of stages answer, and scores them."""

    run: RunDir
    config: TrainConfig
    sources: Sources
    key: str  # digest of the model, the space, and the level
    contents: dict[str, str] = field(default_factory=dict, kw_only=True)  # of each stage, a digest of its scores
    files: dict[tuple[str, str], list[Path]] = field(default_factory=dict, kw_only=True)  # of rollouts, by stage and policy

    def scored(self, adapter: KnobAdapter | None, stage: Stage) -> dict[str, NDArray[np.float64]]:
        """For each policy its (copies, prompts) rewards; without an adapter, of policies that do not depend on one."""
        run, config, sources = self.run, self.config, self.sources
        all_of = stage.policies(adapter, config.pick)
        if not all_of:
            for what in ("rollouts", "scores"):
                run.stage(f"{stage.name}/{what}", [])
            return {}
        policies = {name: policy for name, policy in all_of.items() if same_as(name, all_of) == name}
        runs = [PolicyRun(slug(name), policy) for name, policy in policies.items()]
        seed = (config.seed if config.draws is None else config.draws) + stage.seed
        how = {"copies": stage.copies, "seed": seed, "key": self.key, "samples": 1}
        found = dict(zip(policies, answer(run, config, sources, stage.name, stage.prompts, runs, **how), strict=True))
        rewards = {name: rewards_of([score for _, score in one.pairs()], len(stage.prompts)) for name, one in found.items()}
        self.contents[stage.name] = str(run.content([path for one in found.values() for path in one.scores]))
        self.files.update({(stage.name, name): found[same_as(name, all_of)].rollouts for name in all_of})
        return {name: rewards[same_as(name, all_of)] for name in all_of}


@dataclass(frozen=True)
class Judge(Scorer):
    """The evaluation of one head, stage by stage."""

    trained: KnobAdapter  # the head
    others: Sequence[Compared] = ()  # whom it meets beside the usual policies

    def choose(self) -> tuple[KnobAdapter, str]:
        """What the adapter of the run holds, and why in a sentence; see `training.choice`."""
        config, sources, engine = self.config, self.sources, self.sources.engine
        adapter, (tuning, tuned) = self.trained, self.tuned
        labels = [adapter.space.label(k) for k in range(adapter.space.K)]
        option, best = labels.index(best_of({name: tuned[name] for name in labels})), constant_of(adapter.space, best_of(tuned))
        policy, answers = adapter.policy(config.pick), list(read_all(self.files[tuning.name, HEAD]))
        choices = self._same(choices_of(engine, sources.dev, answers, policy))
        margin = typical_margin(policy, engine, sources.dev, answers, option, config.max_new_tokens)
        mean = MeanShift(adapter.space, choices)
        found = candidates(adapter, option, best.space.values_KJ()[0].tolist(), mean, self._same(margin))
        rewards = self.scored(adapter, choosing(found, config.pick, sources.dev, config.eval_seeds))
        kept = judged(rewards)
        rewards = {name: reward_SP[:, kept] for name, reward_SP in rewards.items()} if kept.any() else rewards
        held = winner(rewards)
        return found[held], sentence(rewards, held, int(kept.sum()), sources.dev_trained)

    def report(self, adapter: KnobAdapter, choice: str) -> Report:
        """The comparison on held-out prompts as the file of the run has it: rewards with six digits. See `compared`."""
        report, content = self.compared(adapter, choice)

        def make(path: Path, advance: Advance) -> None:
            write_text(path, json.dumps(report.to_dict()) + "\n")

        self.run.stage("summary", [Task(SUMMARY, self.config.digest("evaluation", content), make)])
        return read_report(self.run.path)

    def compared(self, adapter: KnobAdapter, choice: str = "") -> tuple[Report, str]:
        """The comparison on held-out prompts, and a digest of what it is made of.

        Args:
            adapter: what is judged; the trained head takes part, too, where it is another one.
            choice: what `choose` said.
        """
        config, sources, trained = self.config, self.sources, self.trained
        tuning, tuned = self.tuned
        evaluation = judging(stages_of(config, trained.space, sources, self.others)[1], trained.space, tuned)
        if adapter is not trained:
            before = fixed(TRAINED, trained.policy(config.pick))
            evaluation = replace(evaluation, compared=[*evaluation.compared, before])
        rewards = self.scored(adapter, evaluation)
        policy, answers = adapter.policy(config.pick), list(read_all(self.files[evaluation.name, HEAD]))
        choices = self._same(choices_of(sources.engine, sources.evaluation, answers, policy))
        more = controls(policy, choices, sources.evaluation, config.eval_seeds)
        also = self.scored(adapter, more)
        tasks, tuned_tasks = ([task_of(prompt) for prompt in prompts] for prompts in (sources.evaluation, sources.dev))
        notes = more.notes | {"numbers": numbers_of(trained, tuning, tuned)} | ({"choice": choice} if choice else {})
        tuned = {name: tuned[name] for name in tuned if name in rewards}
        report = make_report(rewards | also, tuned, tasks, tuned_tasks=tuned_tasks, level=config.level, notes=notes)
        # the order of prompts and policies is part of what a file of scores means
        return report, digest(self.contents, list(rewards | also), tasks, tuned_tasks, notes)

    @cached_property
    def tuned(self) -> tuple[Stage, Rewards]:
        """The stage that tunes, and the rewards of each constant, also beyond the grids: the head answers these prompts, too,
        unless there is no choice.
        """
        tuning, _ = stages_of(self.config, self.trained.space, self.sources)
        own = [] if self.config.keep_head else [Compared(HEAD, "head", KnobAdapter.policy)]
        rewards = self.scored(self.trained, replace(tuning, compared=[*tuning.compared, *own]))
        constants = {one.name: rewards[one.name] for one in tuning.compared}
        return tuning, widen(self.trained.space, tuning, constants, partial(self.scored, self.trained), self.sources.engine)

    def _same(self, value: T) -> T:
        """What the main process found: a GPU reads a little differently in every process."""
        found: T = self.run.processes.gather(value)[0]
        return found


def responses(run: Path, stage: str, policy: str) -> list[Rollout]:
    """What a policy wrote in a stage of the evaluation."""
    name, files = re.compile(rf"{re.escape(slug(policy))}-\d+\.jsonl"), (run / stage / "rollouts").glob("*.jsonl")
    return list(read_all(sorted(path for path in files if name.fullmatch(path.name))))


def mean_length(run: Path, policy: str) -> float:
    """Mean tokens of a policy's responses to the held-out prompts."""
    return float(np.mean([len(rollout.ids) for rollout in responses(run, "evaluation", policy)]))


def slug(name: str) -> str:
    """A policy's name in those of its files; a digest of it where no file can be called so."""
    plain = name.replace(" ", "_").replace(",", "")
    fits = re.fullmatch(r"[^/\0]+", plain) and len(plain.encode(errors="replace")) <= LONGEST
    return plain if fits else digest(name)


def read_report(path: Path) -> Report:
    """The evaluation in a run directory; RunError if there is none."""
    file, cure = path / SUMMARY, "Train with eval_size above 0."
    if not file.exists():
        raise RunError(f"There is no evaluation in {str(path)!r}. {cure}")
    try:
        return Report.from_dict(read_json(file, dict[str, Any], RunError, cure, LARGEST))
    except ValueError as error:
        raise RunError(f"{str(file)!r} is damaged: {error}. {cure}") from None
