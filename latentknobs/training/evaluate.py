"""`evaluate()`: judge a saved adapter on prompts of your own."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentknobs.adapter import KnobAdapter, read_adapter
from latentknobs.config import TrainConfig, make_config, write_yaml
from latentknobs.data.disk import write_text
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout, roll_out, write_lines
from latentknobs.data.scores import score_rollouts
from latentknobs.engines.served import measure_drift
from latentknobs.errors import ConfigError
from latentknobs.evaluation.accounting import Account, save_accounts
from latentknobs.evaluation.comparison import (
    CONTROLLED,
    Rewards,
    Stage,
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
from latentknobs.evaluation.report import HEAD, Report
from latentknobs.files import path_of
from latentknobs.heads.base import Head
from latentknobs.models.sources import Sources, gather
from latentknobs.models.world import in_ordinary_mode, left_as_it_was
from latentknobs.policies import Policy
from latentknobs.policies.names import policy_of
from latentknobs.progress import Advance, progress, say
from latentknobs.reporting import write_report, write_samples
from latentknobs.reporting.samples import RESPONSES
from latentknobs.rewards import RewardSpec
from latentknobs.training.accounts import add_accounts
from latentknobs.training.judging import SUMMARY
from latentknobs.training.rundir import explained
from latentknobs.training.train import noted

Opponent = Policy | KnobAdapter | str | Path
SHOWN = (
    "model", "gguf_file", "device", "dtype", "prompts", "eval_prompts", "train_prompts", "reward", "reward_weights", "engine",
    "max_new_tokens", "batch_size", "eval_size", "eval_seeds", "tune_size", "pick", "account", "seed",
)  # fmt: skip
Kept = dict[tuple[int, str], tuple[NDArray[np.float64], list[Rollout]]]  # by stage and policy


def evaluate(
    adapter: KnobAdapter | str | Path | Sequence[KnobAdapter | str | Path],
    *,
    model: Any = None,
    tokenizer: Any = None,
    prompts: str | Path | Sequence[Any] | None = None,
    tune_prompts: str | Path | Sequence[Any] | None = None,
    reward: RewardSpec | None = None,
    seeds: int = 3,
    against: Opponent | Sequence[Opponent] = (),
    extra: Mapping[str, Opponent] | None = None,
    **settings: Any,
) -> Report:
    """The head against every constant option, tuned ones, greedy, the uniform mixture, a rival head and its own controls.

    Args:
        adapter: an adapter, or the folder of one; or several of one space, trained with different seeds: intervals are then over
            prompts and training seeds, and each is compared with its own rival and controls.
        model, tokenizer, reward: as in `train`; the defaults are the packaged testbed's.
        prompts: held-out prompts; by default the testbed's.
        tune_prompts: prompts on which the best constant is tuned, first those beyond `train_prompts`.
            None splits `prompts` by hash: a fifth judges, the
            rest tunes.
        seeds: times that every policy answers every prompt.
        against: further policies to compare with: names such as `edt:base=1.4,theta=3`, folders of adapters, adapters or
            policies. The report calls a name or a folder what it is called here, an object by its class.
        extra: the same, under names of your own.
        settings: fields of `TrainConfig` that concern evaluation: `eval_size`, `tune_size`, `pick`, `max_new_tokens`,
            `batch_size`, `seed`, `device`, `dtype`, `reward_weights`; `account` accounts for every policy, too; `output_dir` is a
            folder for all responses and the report as a page, by default none.

    Raises:
        AdapterError: an adapter cannot be read, or was trained on a model of another shape.
        UnknownNameError: there is no policy of a name.
        ConfigError: two policies share a name, or the settings of one do not fit; otherwise as in `train`.
        DataError, RewardError: as in `train`.
    """
    listed = [adapter] if isinstance(adapter, KnobAdapter | str | Path) else list(adapter)
    adapters = [one if isinstance(one, KnobAdapter) else KnobAdapter.from_pretrained(one) for one in listed]
    check_alike(adapters)
    named: dict[str, Any] = {"model": model, "reward": reward}
    named |= {"prompts": prompts if tune_prompts is None else tune_prompts}
    named |= {"eval_prompts": None if tune_prompts is None else prompts}
    notes, objects = noted(named)
    config = make_config({**notes, **settings, "eval_seeds": seeds})
    folder = _folder(config) if "output_dir" in config.changed else None
    with left_as_it_was(model), in_ordinary_mode():
        sources = gather(config, tokenizer=tokenizer, **objects)
        with closing(sources.engine):
            kept, known = Kept(), dict[int, Account]()
            reports = [_evaluate(one, config, sources, against, extra or {}, kept, known) for one in adapters]
            joint = reports[0] if len(reports) == 1 else Report.join(reports)
            if folder:
                _write(folder, joint, config, reports[0], adapters[0], sources)
            return joint


def _folder(config: TrainConfig) -> Path:
    """The folder of the page; an error before any work that would be lost."""
    folder = path_of(config.output_dir)
    if (folder / "manifest.jsonl").exists() or (folder / "adapter").exists():
        raise ConfigError(f"{str(folder)!r} holds a run, whose own evaluation would be lost. Choose another output_dir.")
    with explained(folder, "the evaluation"):
        (folder / "evaluation").mkdir(parents=True, exist_ok=True)
        os.utime(folder / "evaluation")  # an error where nothing can be written
    return folder


def _write(folder: Path, report: Report, config: TrainConfig, first: Report, adapter: KnobAdapter, sources: Sources) -> None:
    """An evaluation as files of a run, and its page, which shows the choices of the first adapter."""
    with explained(folder, "the evaluation"):
        write_yaml(config, folder / "config.yaml", SHOWN)
        write_text(folder / SUMMARY, json.dumps(report.to_dict()) + "\n")  # first: the rest may fill the disk
        write_lines(folder / RESPONSES.replace("*", "00000"), first.rollouts[HEAD])
        rows = ({"policy": name} | asdict(row) for name, rollouts in report.rollouts.items() for row in rollouts)
        write_lines(folder / "evaluation" / "responses.jsonl", rows)
        save_accounts(folder, report.rewards, report.accounts)
        write_samples(folder, adapter.space, sources.evaluation, report.tasks, sources.tokenizer)
        write_report(folder, report)


def check_alike(adapters: Sequence[KnobAdapter]) -> None:
    """Refuses, by a ConfigError, adapters that are not those of one training with several seeds."""
    if not adapters:
        raise ConfigError("There is no adapter to evaluate. Give at least one.")
    kinds = {(", ".join(one.space.names), one.segmenter.level) for one in adapters}
    if len(kinds) > 1:
        raise ConfigError(
            f"Adapters of different trainings cannot be joined: {sorted(map(str, kinds))}. Evaluate them one by one."
        )


def _evaluate(
    adapter: KnobAdapter, config: TrainConfig, sources: Sources, against: Opponent | Sequence[Opponent],
    extra: Mapping[str, Opponent], kept: Kept, accounts: dict[int, Account],
) -> Report:  # fmt: skip
    if not sources.evaluation:
        raise ConfigError("There are no held-out prompts to judge on. Set eval_size to at least 1, or give more prompts.")
    adapter.check_model(sources.model, strict=False)
    others = [against] if isinstance(against, Opponent) else against
    named_others = [(str(one) if isinstance(one, str | Path) else type(one).__name__, one) for one in others]
    found = [fixed(name, _policy(one, sources, config)) for name, one in [*named_others, *extra.items()]]
    everyone = [*lineup(adapter.space, adapter.rival_features), *found]
    compared = [one for one in everyone if one.build(adapter, config.pick) is not None]
    names = [one.name for one in compared]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"Two policies are called {twice[0]!r}. Give one of them another name: extra={{'name': policy}}.")
    both = stages(compared, sources.dev, sources.evaluation, config.eval_seeds)
    policies = both[1].policies(adapter, config.pick)
    for policy in policies.values():
        sources.engine.check(policy)
    if config.account:
        most = both[1].responses + (1 + CONTROLLED) * len(sources.evaluation) * config.eval_seeds
        say(f"The account reads the responses to held-out prompts again, {most:,} at most.")
    if not kept and (most := most_wider(adapter.space, both[0])):
        say(f"Up to {most:,} more responses if the best constant is at the edge of the options.")
    with progress("evaluation", sum(stage.responses for stage in both)) as advance:
        tuning, _ = _scored(adapter, config, sources, both[0], kept, advance)

        def rate(stage: Stage) -> Rewards:
            return _scored(adapter, config, sources, stage, kept, advance)[0]

        tuned = widen(adapter.space, both[0], tuning, rate, sources.engine)
        evaluation = judging(both[1], adapter.space, tuned)
        rewards, rollouts = _scored(adapter, config, sources, evaluation, kept, advance)
    head = adapter.policy(config.pick)
    if sources.engine.drifts:
        ids = [sources.evaluation[rollout.prompt].ids for rollout in rollouts[HEAD]]
        say(f"{sources.engine.name}: {measure_drift(sources.engine, adapter.space, ids[:64], rollouts[HEAD][:64])}")
    choices = choices_of(sources.engine, sources.evaluation, rollouts[HEAD], head)
    more = controls(head, choices, sources.evaluation, config.eval_seeds)
    with progress("controls", more.responses) as advance:
        also, answers = _scored(adapter, config, sources, more, kept, advance)
    tasks, tuned_tasks = [task_of(prompt) for prompt in sources.evaluation], [task_of(prompt) for prompt in both[0].prompts]
    report = make_report(
        rewards | also, {name: tuned[name] for name in tuned if name in rewards}, tasks, rollouts | answers,
        tuned_tasks=tuned_tasks, level=adapter.segmenter.level,
        notes=more.notes | {"numbers": numbers_of(adapter, both[0], tuned)},
    )  # fmt: skip
    if config.account:
        spaces = {name: policies[same_as(name, policies)].space for name in policies}  # of others it is that of the adapter
        each = {name: (rows, spaces.get(name, adapter.space)) for name, rows in (rollouts | answers).items()}
        add_accounts(report, sources, each, config.batch_size, accounts)
    return report


def _policy(spec: Opponent, sources: Sources, config: TrainConfig) -> Policy:
    found = read_adapter(spec)
    if isinstance(found, KnobAdapter):
        found.check_model(sources.model, strict=False)
        return found.policy(config.pick)
    return policy_of(found, sources.tokenizer)


def _scored(
    adapter: KnobAdapter, config: TrainConfig, sources: Sources, stage: Stage, kept: Kept, advance: Advance
) -> tuple[dict[str, NDArray[np.float64]], dict[str, list[Rollout]]]:
    """For each policy of a stage its (copies, prompts) rewards and its responses; `kept` has those that are known."""
    rewards, rollouts = dict[str, NDArray[np.float64]](), dict[str, list[Rollout]]()
    policies = stage.policies(adapter, config.pick)
    for name, policy in policies.items():
        if (same := same_as(name, policies)) in rollouts:
            rewards[name], rollouts[name] = rewards[same], rollouts[same]
            advance(stage.copies * len(stage.prompts))
            continue
        if isinstance(head := getattr(policy, "head", None), Head):
            head.to(sources.engine.device)
        if (known := (stage.seed, policy.identity())) in kept:
            rewards[name], rollouts[name] = kept[known]
            advance(stage.copies * len(stage.prompts))
            continue
        rollouts[name] = roll_out(
            sources.model, sources.tokenizer, stage.prompts, policy, copies=stage.copies, samples=1,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size, seed=config.seed + stage.seed, engine=sources.engine, advance=advance,
        )  # fmt: skip
        rewards[name] = _rewards(sources.reward, stage.prompts, rollouts[name])
        kept[known] = rewards[name], rollouts[name]
    return rewards, rollouts


def _rewards(reward: RewardSpec, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> NDArray[np.float64]:
    return rewards_of([score.value for score in score_rollouts(reward, prompts, rollouts, whole=False)], len(prompts))
