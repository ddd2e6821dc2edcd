"""What the adapter of a run and its rivals earn under each budget that a learner on policy was trained for."""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

from latentknobs.adapter import KnobAdapter
from latentknobs.config import TrainConfig
from latentknobs.data.disk import write_text
from latentknobs.evaluation.comparison import JUDGING, constant_of, lineup, same_as
from latentknobs.learners.base import Budget, Learner
from latentknobs.models.sources import Sources
from latentknobs.progress import Advance
from latentknobs.reporting.budgets import FILE
from latentknobs.training.rundir import RunDir, Task
from latentknobs.training.sampling import PolicyRun, answer, read_all, read_scores


def budgets_of(config: TrainConfig, learner: Learner) -> list[Budget]:
    """The budgets that are compared: none where there is only one, which the evaluation itself has."""
    found = learner.budgets(config.max_new_tokens, config.steps) if learner.on_policy else []
    return found if len(found) > 1 else []


def planned_budgets(config: TrainConfig, learner: Learner, sources: Sources) -> dict[str, int]:
    """The most responses to held-out prompts under each budget."""
    budgets = budgets_of(config, learner) if sources.evaluation else []
    policies = len(lineup(learner.inputs.space, config.rival_features)) + 1  # one constant may be beyond the options
    return {_name(one): policies * len(sources.evaluation) * _copies(config, budgets) for one in budgets}


def judge_budgets(
    run: RunDir, config: TrainConfig, sources: Sources, learner: Learner, adapter: KnobAdapter, key: str, tuned: str
) -> None:  # fmt: skip
    """Writes what each policy of the evaluation, with the `tuned` constant, earns on held-out prompts under each budget, for the
    report's curves.
    """
    budgets = budgets_of(config, learner)
    if not budgets and run.processes.is_main:
        (run.path / FILE).unlink(missing_ok=True)
    built = {one.name: one.build(adapter, config.pick) for one in lineup(adapter.space, config.rival_features)}
    built.setdefault(tuned, constant_of(adapter.space, tuned))
    everyone = {name: policy for name, policy in built.items() if policy is not None}
    policies = {name: policy for name, policy in everyone.items() if same_as(name, everyone) == name}
    found: dict[str, list[list[float | None]]] = {name: [] for name in policies}
    contents: list[str] = []
    runs, seed = [PolicyRun(f"{n:03d}", policy) for n, policy in enumerate(policies.values())], config.seed + JUDGING
    for one in budgets:
        here, under = config.replace(max_new_tokens=one.tokens), replace(learner.inputs, samples=one.samples)
        how = {"copies": _copies(config, budgets), "seed": seed, "key": key, "samples": one.samples}
        answers = answer(run, here, sources, _name(one), sources.evaluation, runs, **how)
        for name, own in zip(policies, answers, strict=True):
            contents += run.content(own.scores)
            earned = type(learner)(learner.settings, under).earned(list(read_all(own.rollouts)), read_scores(own.scores))
            found[name].append([value if isfinite(value := earned[p]) else None for p in range(len(sources.evaluation))])

    def make(path: Path, advance: Advance) -> None:
        rewards = {name: found[same_as(name, everyone)] for name in everyone}
        write_text(path, json.dumps({"budgets": budgets, "rewards": rewards}) + "\n")

    if budgets:
        run.stage("budgets", [Task(FILE, f"{contents} {list(policies)}", make)])


def _copies(config: TrainConfig, budgets: Sequence[Budget]) -> int:
    """Responses to a prompt: enough for the largest group."""
    return max(config.eval_seeds, *(one.samples for one in budgets))


def _name(budget: Budget) -> str:
    return f"budget-{budget.tokens}-tokens-{budget.samples}-together"
