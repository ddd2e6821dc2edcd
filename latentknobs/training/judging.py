"""The evaluation stage: the head and every baseline answer held-out prompts, file by file, and are compared.

A constant does not depend on the head, so its responses are kept when only the training of the head changes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentknobs.adapter import KnobAdapter
from latentknobs.config import TrainConfig
from latentknobs.content import digest
from latentknobs.data.prompts import Prompt
from latentknobs.errors import RunError
from latentknobs.evaluation.evaluate import HEAD, Report, baselines, constants, make_report, task_of
from latentknobs.files import MB, read_json
from latentknobs.models.sources import Sources
from latentknobs.policies import Policy
from latentknobs.progress import Advance
from latentknobs.training.rundir import RunDir, Task, write_text
from latentknobs.training.sampling import PolicyRun, read_all, read_scores, sample, score_files

SUMMARY = "evaluation/summary.json"
LARGEST = 512 * MB


def judge(run: RunDir, config: TrainConfig, sources: Sources, adapter: KnobAdapter, key: str) -> Report:
    """The comparison on held-out prompts, and its files.

    Args:
        key: digest of the model, the space, and the level.
    """
    policies = {HEAD: adapter.policy(config.pick), **baselines(adapter, config.pick)}
    fixed = constants(adapter)
    tune = sources.train[: config.tune_size]
    tuning, tuned_by = _scored(run, config, sources, "tuning", tune, _runs(fixed), 1, 101, key)
    values, rated_by = _scored(
        run, config, sources, "evaluation", sources.evaluation, _runs(policies), config.eval_seeds, 1001, key
    )

    def make(path: Path, advance: Advance) -> None:
        rewards = dict(zip(policies, values, strict=True))
        report = make_report(rewards, dict(zip(fixed, tuning, strict=True)), [task_of(prompt) for prompt in sources.evaluation])
        write_text(path, json.dumps(report.to_dict()) + "\n")

    # the order of prompts and policies is part of what a file of scores means
    tasks = [task_of(prompt) for prompt in sources.evaluation]
    run.stage("summary", [Task(SUMMARY, config.digest("evaluation", digest(tuned_by, rated_by, list(policies), tasks)), make)])
    return read_report(run.path)


def _runs(policies: Mapping[str, Policy]) -> list[PolicyRun]:
    return [PolicyRun(_slug(name), policy) for name, policy in policies.items()]


def _scored(
    run: RunDir, config: TrainConfig, sources: Sources, stage: str, prompts: Sequence[Prompt], policies: Sequence[PolicyRun],
    copies: int, part: int, key: str,
) -> tuple[list[NDArray[np.float64]], str]:  # fmt: skip
    """For each policy its (copies, prompts) scores, NaN where the reward failed, and a digest of all of them."""
    files = sample(run, config, sources, stage, prompts, policies, copies=copies, seed=config.seed + part, key=key)
    flat = [path for paths in files for path in paths]
    scores = score_files(run, sources.reward, stage, prompts, flat)
    values = []
    for number, paths in enumerate(files):
        mine = scores[number * len(paths) : (number + 1) * len(paths)]
        pairs = zip((rollout.prompt for rollout in read_all(paths)), read_scores(mine), strict=True)
        by_prompt = sorted(pairs, key=lambda pair: pair[0])
        row = [np.nan if value is None else value for _, value in by_prompt]
        values.append(np.array(row, dtype=float).reshape(len(prompts), copies).T)
    return values, str(run.content(scores))


def mean_length(path: Path, policy: str) -> float:
    """Mean tokens of a policy's responses to the held-out prompts."""
    made = read_all(sorted((path / "evaluation" / "rollouts").glob(f"{_slug(policy)}-*.jsonl")))
    return float(np.mean([len(rollout.ids) for rollout in made]))


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
