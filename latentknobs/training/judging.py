"""The evaluation stage: the head and every baseline answer held-out prompts, file by file, and are compared.

A constant does not depend on the head, so its responses are kept when only the training of the head changes.
"""

import json
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentknobs.adapter import KnobAdapter
from latentknobs.config import TrainConfig
from latentknobs.content import digest
from latentknobs.errors import RunError
from latentknobs.evaluation.comparison import (
    CONTROLLED,
    Stage,
    controls,
    lineup,
    make_report,
    numbers_of,
    rewards_of,
    same_as,
    stages,
    task_of,
)  # fmt: skip
from latentknobs.evaluation.controls import choices_of
from latentknobs.evaluation.report import HEAD, Report
from latentknobs.files import MB, read_json
from latentknobs.knobs.space import KnobSpace
from latentknobs.models.sources import Sources
from latentknobs.progress import Advance
from latentknobs.training.rundir import RunDir, Task, write_text
from latentknobs.training.sampling import PolicyRun, read_all, read_scores, sample, score_files

SUMMARY = "evaluation/summary.json"
LARGEST = 512 * MB


def stages_of(config: TrainConfig, space: KnobSpace, sources: Sources) -> tuple[Stage, ...]:
    """The stages of the evaluation of a run; without held-out prompts there are none."""
    both = stages(lineup(space), sources.train[: config.tune_size], sources.evaluation, config.eval_seeds)
    return both if sources.evaluation else ()


def planned(config: TrainConfig, space: KnobSpace, sources: Sources) -> dict[str, int]:
    """The most responses of each stage of the evaluation of a run."""
    found = {stage.name: stage.responses for stage in stages_of(config, space, sources)}
    return found | ({"controls": CONTROLLED * len(sources.evaluation) * config.eval_seeds} if found else {})


def judge(run: RunDir, config: TrainConfig, sources: Sources, adapter: KnobAdapter, key: str) -> Report:
    """The comparison on held-out prompts, and its files.

    Args:
        key: digest of the model, the space, and the level.
    """
    both = stages_of(config, adapter.space, sources)
    (tuning, tuned_by), (rewards, rated_by) = [_scored(run, config, sources, adapter, stage, key) for stage in both]
    mine = list(read_all(sorted((run.path / "evaluation" / "rollouts").glob(f"{_slug(HEAD)}-*.jsonl"))))
    head = adapter.policy(config.pick)
    choices = choices_of(sources.engine, sources.evaluation, mine, head)
    choices = run.processes.gather(choices)[0]  # a GPU reads a little differently in every process
    more = controls(head, choices, sources.evaluation, config.eval_seeds)
    also, compared_by = _scored(run, config, sources, adapter, more, key)
    tasks, tuned_tasks = [task_of(prompt) for prompt in sources.evaluation], [task_of(prompt) for prompt in both[0].prompts]
    notes = more.notes | {"numbers": numbers_of(adapter, both[0])}

    def make(path: Path, advance: Advance) -> None:
        report = make_report(rewards | also, tuning, tasks, tuned_tasks=tuned_tasks, level=config.level, notes=notes)
        write_text(path, json.dumps(report.to_dict()) + "\n")

    # the order of prompts and policies is part of what a file of scores means
    content = digest(tuned_by, rated_by, compared_by, list(rewards | also), tasks, tuned_tasks, notes)
    run.stage("summary", [Task(SUMMARY, config.digest("evaluation", content), make)])
    return read_report(run.path)


def _scored(
    run: RunDir, config: TrainConfig, sources: Sources, adapter: KnobAdapter, stage: Stage, key: str
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """For each policy its (copies, prompts) rewards, and a digest of all of them."""
    all_of = stage.policies(adapter, config.pick)
    if not all_of:
        for what in ("rollouts", "scores"):
            run.stage(f"{stage.name}/{what}", [])
        return {}, ""
    policies = {name: policy for name, policy in all_of.items() if same_as(name, all_of) == name}
    runs = [PolicyRun(_slug(name), policy) for name, policy in policies.items()]
    seed = config.seed + stage.seed
    files = sample(run, config, sources, stage.name, stage.prompts, runs, copies=stage.copies, seed=seed, key=key, samples=1)
    scores = score_files(run, sources.reward, stage.name, stage.prompts, [path for paths in files for path in paths])
    rewards, left = {}, iter(scores)
    for name, paths in zip(policies, files, strict=True):
        pairs = zip((rollout.prompt for rollout in read_all(paths)), read_scores(list(islice(left, len(paths)))), strict=True)
        rewards[name] = rewards_of([value for _, value in sorted(pairs, key=itemgetter(0))], len(stage.prompts))
    rewards = {name: rewards[same_as(name, all_of)] for name in all_of}
    return rewards, str(run.content(scores))


def mean_length(path: Path, policy: str) -> float:
    """Mean tokens of a policy's responses to the held-out prompts."""
    rollouts = read_all(sorted((path / "evaluation" / "rollouts").glob(f"{_slug(policy)}-*.jsonl")))
    return float(np.mean([len(rollout.ids) for rollout in rollouts]))


def _slug(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


def read_report(path: Path) -> Report:
    """The evaluation in a run directory.

    Raises:
        RunError: there is none.
    """
    file, cure = path / SUMMARY, "Train with eval_size above 0."
    if not file.exists():
        raise RunError(f"There is no evaluation in {str(path)!r}. {cure}")
    try:
        return Report.from_dict(read_json(file, dict[str, Any], RunError, cure, LARGEST))
    except ValueError as error:
        raise RunError(f"{str(file)!r} is damaged: {error}. {cure}") from None
