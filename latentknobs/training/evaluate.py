"""`evaluate()`: judge a saved adapter on prompts of your own."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from latentknobs.adapter import KnobAdapter, read_adapter
from latentknobs.config import TrainConfig, make_config, write_yaml
from latentknobs.content import digest
from latentknobs.data.disk import write_text
from latentknobs.data.rollouts import Rollout, write_lines
from latentknobs.engines.served import measure_drift
from latentknobs.errors import ConfigError
from latentknobs.evaluation.accounting import Account, save_accounts
from latentknobs.evaluation.comparison import CONTROLLED, Compared, fixed, lineup, most_wider, same_as
from latentknobs.evaluation.report import HEAD, PER_TASK, Report
from latentknobs.files import path_of
from latentknobs.heads.base import Head
from latentknobs.models.sources import Sources, gather
from latentknobs.models.world import left_as_it_was
from latentknobs.policies import Pick, Policy
from latentknobs.policies.names import policy_of
from latentknobs.progress import processes, say
from latentknobs.reporting import write_report, write_samples
from latentknobs.reporting.samples import RESPONSES
from latentknobs.rewards import RewardSpec
from latentknobs.training.accounts import add_accounts
from latentknobs.training.judging import SUMMARY, Judge, slug, stages_of
from latentknobs.training.processes import Processes
from latentknobs.training.rundir import RunDir, explained
from latentknobs.training.sampling import read_all
from latentknobs.training.subject import model_content, tokenizer_content
from latentknobs.training.train import noted

UNFINISHED = "unfinished"  # within the folder of an evaluation
Opponent = Policy | KnobAdapter | str | Path
SHOWN = (
    "model", "gguf_file", "device", "dtype", "prompts", "eval_prompts", "train_prompts", "reward", "reward_weights", "engine",
    "max_new_tokens", "batch_size", "eval_size", "eval_seeds", "tune_size", "pick", "account", "seed",
)  # fmt: skip


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
            folder for all responses and the report as a page, by default none. The same call goes on there if it was ended;
            responses are those of the same model, prompts, settings, and policies of the same class and values.

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
    with left_as_it_was(model):
        sources = gather(config, tokenizer=tokenizer, **objects)
        with closing(sources.engine):
            if not sources.evaluation:
                raise ConfigError("There are no held-out prompts to judge on. Set eval_size to at least 1, or give more prompts.")
            usual = lineup(adapters[0].space, adapters[0].rival_features)
            others = _others(against, extra or {}, sources, config.pick, usual)
            accounts, texts = dict[int, Account](), dict[tuple[str, ...], list[Rollout]]()
            with _workplace(folder) as place:
                runs = [place / f"{n}" for n in range(len(adapters))]
                key = digest(model_content(sources.model), tokenizer_content(sources.tokenizer)) if folder else ""
                reports = [
                    _evaluate(one, config, sources, others, accounts, texts, run, runs[0] if run != runs[0] else None, key)
                    for one, run in zip(adapters, runs, strict=True)
                ]
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


@contextmanager
def _workplace(folder: Path | None) -> Iterator[Path]:
    """Where the responses are until the report is there: in its folder, so that the same evaluation goes on if it was ended.

    A temporary one without such a folder, and where a launcher has started several processes, which share nothing here.
    """
    if folder is None or processes() > 1:
        with TemporaryDirectory(dir=folder) as temporary:
            yield Path(temporary)
        return
    place = folder / UNFINISHED
    if place.exists():
        say(f"An evaluation that was ended left responses in {str(place)!r}: those of the same policies and prompts are kept.")
    with RunDir(place, processes=Processes(alone=True)):  # its lock keeps two evaluations apart
        for scores in place.glob("*/*/scores"):  # a reward may have failed, or changed; its cache keeps what is known to stand
            shutil.rmtree(scores)
        yield place
    shutil.rmtree(place, ignore_errors=True)


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
    adapter: KnobAdapter, config: TrainConfig, sources: Sources, others: Sequence[Compared], accounts: dict[int, Account],
    texts: dict[tuple[str, ...], list[Rollout]], folder: Path, after: Path | None, key: str,
) -> Report:  # fmt: skip
    """The report on one adapter, from a run of its own in `folder`, which takes what it can from the one `after`.

    `key` tells models apart. `accounts` and `texts` are what is known already: accounts by the `id` of the responses, responses
    by policy and content.
    """
    adapter.check_model(sources.model, strict=False)
    own = config.replace(rival_features=adapter.rival_features, level=adapter.segmenter.level, keep_head=True)
    tuning, evaluation = stages_of(own, adapter.space, sources, others)
    policies = evaluation.policies(adapter, config.pick)
    for policy in policies.values():
        sources.engine.check(policy)
        if isinstance(head := getattr(policy, "head", None), Head):
            head.to(sources.engine.device)
    if config.account:
        most = evaluation.responses + (1 + CONTROLLED) * len(sources.evaluation) * config.eval_seeds
        say(f"The account reads the responses to held-out prompts again, {most:,} at most.")
    if after is None and (most := most_wider(adapter.space, tuning)):
        say(f"Up to {most:,} more responses if the best constant is at the edge of the options.")
    with RunDir(folder, processes=Processes(alone=True), resume=True, after=after) as run:
        judge = Judge(run, own, sources, key, adapter, others)
        report, _ = judge.compared(adapter)
        for (stage, name), paths in judge.files.items():
            if stage in (evaluation.name, "controls"):
                rows = sorted(read_all(paths), key=lambda row: row.prompt)
                report.rollouts[name] = texts.setdefault((same_as(name, policies), *run.content(paths)), rows)
    if sources.engine.drifts:
        few = report.rollouts[HEAD][:64]
        ids = [sources.evaluation[rollout.prompt].ids for rollout in few]
        say(f"{sources.engine.name}: {measure_drift(sources.engine, adapter.space, ids, few)}")
    if config.account:
        spaces = {name: policies[same_as(name, policies)].space for name in policies}  # of others it is that of the adapter
        each = {name: (rows, spaces.get(name, adapter.space)) for name, rows in report.rollouts.items()}
        add_accounts(report, sources, each, config.batch_size, accounts)
    if PER_TASK in report.rewards:
        chosen = enumerate(report.constants_by_task)
        report.rollouts[PER_TASK] = [row for p, name in chosen for row in report.rollouts[name] if row.prompt == p]
    return report


def _others(against: Opponent | Sequence[Opponent], extra: Mapping[str, Opponent], sources: Sources, pick: Pick,
            known: Sequence[Compared]) -> list[Compared]:  # fmt: skip
    """Whom adapters are compared with beside those that are known; ConfigError if two have one name."""
    several = [against] if isinstance(against, Opponent) else against
    named = [(str(one) if isinstance(one, str | Path) else type(one).__name__, one) for one in several]
    found = [fixed(name, _policy(one, sources, pick)) for name, one in [*named, *extra.items()]]
    names = [one.name for one in [*known, *found]]
    if twice := [name for name in names if [*map(slug, names)].count(slug(name)) > 1]:
        raise ConfigError(f"Two policies are called {twice[0]!r}. Give one of them another name: extra={{'name': policy}}.")
    return found


def _policy(spec: Opponent, sources: Sources, pick: Pick) -> Policy:
    found = read_adapter(spec)
    if isinstance(found, KnobAdapter):
        found.check_model(sources.model, strict=False)
        return found.policy(pick)
    return policy_of(found, sources.tokenizer)
