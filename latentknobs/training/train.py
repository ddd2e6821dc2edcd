"""`train()`: from knobs, prompts and a reward to an adapter with its evidence."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal

from latentknobs.adapter import GAIN, RESULT, KnobAdapter, describe_model
from latentknobs.config import OBJECT, TrainConfig, fields, make_config, read_yaml, write_yaml
from latentknobs.data.columns import row_bytes
from latentknobs.data.evidence import check_evidence
from latentknobs.data.size import disk_warning, most_segments
from latentknobs.engines.base import check_reads
from latentknobs.errors import ConfigError
from latentknobs.evaluation.report import ALL, CONTROLS, GREEDY, HEAD, Report
from latentknobs.heads.base import Head
from latentknobs.heads.features import check_features, check_rival, width
from latentknobs.heads.segmenters import Segmenter, parse_level
from latentknobs.knobs.knob import DecodingKnob
from latentknobs.knobs.space import KnobSpace
from latentknobs.knobs.strategies import only, read_strategies
from latentknobs.learners.base import Inputs, Learner, find_learner
from latentknobs.models.sources import Sources, gather
from latentknobs.models.world import left_as_it_was
from latentknobs.progress import say
from latentknobs.reporting import write_report, write_samples
from latentknobs.reporting.console import name_of, signed
from latentknobs.reporting.findings import write_findings
from latentknobs.stages import Enters
from latentknobs.training.accounts import write_accounts
from latentknobs.training.budgets import judge_budgets, planned_budgets
from latentknobs.training.diagnostics import Facts, diagnose
from latentknobs.training.fit import check_fit
from latentknobs.training.imitation import unscored
from latentknobs.training.judging import SUMMARY, Judge, mean_length, planned
from latentknobs.training.modules import MAIN, RIVAL, Modules
from latentknobs.training.plan import make_plan
from latentknobs.training.processes import Processes
from latentknobs.training.rounds import SHOWN, Round
from latentknobs.training.rundir import RunDir, explained, say_changes, write_readme
from latentknobs.training.several import run_folder, train_several
from latentknobs.training.subject import WEIGHTS, subject, weights
from latentknobs.training.tracking import Trackers

UNSHOWN = ("model", "features", "shard_size", "feature_dtype")  # in an adapter's notes, which hold the first two elsewhere


@dataclass
class Run:
    """What `train` returns.

    Attributes:
        path: the run directory.
        adapter: the learned adapter.
        report: the evaluation, None when `eval_size` is 0.
        report_path: the same as HTML, for people.
        runs: of several training seeds, each by itself; `report` is then the joint one.
        is_main: whether this process is the one of several that reports the result.
    """

    path: Path
    adapter: KnobAdapter
    report: Report | None
    report_path: Path | None = None
    is_main: bool = True
    runs: tuple["Run", ...] = ()


def train(
    *,
    knobs: Sequence[Any] | str | None = None,
    model: Any = None,
    tokenizer: Any = None,
    prompts: str | Path | Iterable[Any] | None = None,
    eval_prompts: str | Path | Iterable[Any] | None = None,
    preferences: str | Path | Iterable[Any] | None = None,
    reward: str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None = None,
    second_reward: str | Callable[..., Any] | None = None,
    config: str | Path | TrainConfig | None = None,
    resume: bool = False,
    seeds: int = 1,
    after: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Learns to choose decoding options and measures the gain on held-out prompts.

    Every argument has a default: `train(knobs=["temperature"])` trains on the packaged testbed, offline.

    Args:
        knobs: names, `"name:grid"`, `{name: grid}` or knob objects.
        model: a name, or a transformers causal LM with its `tokenizer`; it stays on its device and in its dtype.
        prompts, eval_prompts: JSONL files, `dataset:NAME`, datasets, or lists of texts or rows.
        preferences: pairs from elsewhere in place of the first round's rollouts, in TRL's preference format: as for prompts.
        reward, second_reward: names, or callables with TRL's signature `reward(prompts, completions, **columns)`; for `reward`
            also a list of these, which are added up with `reward_weights`.
        config: a YAML file or a `TrainConfig`; arguments of the call win over it.
        resume: also reuse the finished scores of a callable reward without `version`, which a new run computes again.
        seeds: how many times to train, with `seed`, `seed` + 1, ..., each in a folder of its own in `output_dir`. All answer the
            same held-out prompts: the joint report has intervals over prompts and training seeds. The adapter is the first one's.
        after: a run whose finished files are copied where the settings that they depend on are the same, e.g. that of `headroom`.
        settings: any other setting, by its flat name (`beta=0.2`) or in its section (`learner={"beta": 0.2}`).

    Raises:
        LatentKnobsError: one of its kinds, for whatever is wrong with the input. Finished stages stay on disk.
    """
    named = {"model": model, "prompts": prompts, "eval_prompts": eval_prompts, "preferences": preferences}
    chosen, space, objects = settle(knobs, config, settings, named | {"reward": reward, "second_reward": second_reward})
    with left_as_it_was(model):

        def one(config: TrainConfig, known: Path | None) -> Run:
            sources = gather(config, tokenizer=tokenizer, **objects)
            with closing(sources.engine):
                return _run(config, space, sources, resume, known)

        known = None if after is None else run_folder(after)
        return one(chosen, known) if seeds == 1 else train_several(chosen, seeds, known, one)


def settle(
    knobs: Sequence[Any] | str | None, config: str | Path | TrainConfig | None, settings: dict[str, Any],
    named: Mapping[str, Any],
) -> tuple[TrainConfig, KnobSpace, dict[str, Any]]:  # fmt: skip
    """The config and the space of a call, and those of its arguments that are objects, which `gather` takes.

    `named` may be names or objects; None was not passed.
    """
    base = config.chosen() if isinstance(config, TrainConfig) else read_yaml(config) if config else {}
    notes, objects = noted(named)
    settings |= notes
    specs = [knobs] if isinstance(knobs, str | DecodingKnob | Mapping) else knobs
    if specs is not None and not isinstance(specs, Iterable):
        raise ConfigError(f"knobs={knobs!r} is not a list of knobs. Write e.g. knobs=['temperature', 'top_p:0.9,1'].")
    if specs is not None:
        settings["knobs"] = [_spec(knob) for knob in specs]
    chosen = make_config(base, settings)
    saved = read_strategies(chosen.strategies) if isinstance(chosen.strategies, str) else None
    if saved is not None and "knobs" not in chosen.changed:
        chosen = chosen.replace(knobs=saved.knobs, order=saved.order)
    space = KnobSpace.of(*(specs if specs is not None else chosen.knobs), order=chosen.order)
    if chosen.strategies is not None:
        space = only(space, saved.strategies if saved else chosen.strategies)
    return chosen, space, objects


def noted(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the config says of arguments that may be names or objects, and those that are objects, which `gather` takes."""
    notes = {name: _named(value, name == "reward") for name, value in named.items() if value is not None}
    texts = {name: (known,) if isinstance(known, str) else known for name, known in notes.items()}
    return notes, {name: named[name] for name in notes if any(text.endswith(OBJECT) for text in texts[name])}


def _run(config: TrainConfig, space: KnobSpace, sources: Sources, resume: bool, after: Path | None) -> Run:
    """All stages of a run, on sources that are already loaded. See `train`."""
    segmenter = parse_level(config.level, sources.tokenizer)
    learners = make_learners(config, space, segmenter)
    check_reads(sources.engine, config.features)
    check_module(learners[MAIN], width(config.features, sources.engine.hidden_size or 0))
    check_evidence([*sources.train, *sources.dev, *sources.evaluation], space.needs)
    check_fit(config, 1, int(config.validation > 0))
    processes = Processes(cpu=config.device == "cpu" or None)
    processes.agree(space.facts())
    say(f"{space!r}")
    supplied = len(sources.preferences.rollouts) if sources.preferences else None
    used, prompts = learners[MAIN].most_responses(config.rollouts), len(sources.train)
    if learners[MAIN].on_policy:
        used, prompts = config.rollouts, min(prompts, SHOWN)
    if unversioned := unversioned_line(sources, resume):
        say(unversioned)
    with (
        RunDir(config.output_dir, say, processes, resume, after) as run,
        Trackers(config.trackers, run.path, config.flat()) as trackers,
    ):
        if processes.is_main:
            _begin(run, config, learners[MAIN], sources, used * prompts)
        evaluation = planned(config, space, sources) | planned_budgets(config, learners[MAIN], sources)
        run.plan = make_plan(run.path, config, prompts, evaluation, supplied, processes.size, used)
        by_steps = learned_from(config, learners[MAIN], prompts) + unscored(config, learners[MAIN])
        on_policy = len(learners) * by_steps if learners[MAIN].on_policy else 0
        say(f"{run.plan.responses(on_policy)} `latentknobs status {run.path} --watch` shows how long they take.")
        if config.account:
            say(f"The account reads {sum(evaluation.get(name, 0) for name in ('evaluation', 'controls')):,} of these again.")
        run.track = trackers.log
        key = processes.gather(subject(sources.model, sources.tokenizer, space, segmenter))[0]
        modules: Modules | None = None
        facts, findings = Facts(), list[str]()
        for number in range(1, config.rounds + 1):
            modules, facts, findings = Round(run, config, sources, learners, number, key, modules).result()
        assert modules is not None
        adapter = _adapter(config, learners[MAIN], sources, modules)
        report = None
        if sources.evaluation:
            judge, why = Judge(run, config, sources, key, adapter), ""
            if not config.keep_head:
                adapter, why = judge.choose()
                adapter.training |= {"choice": why}
                say(why)
            report = judge.report(adapter, why)
            judge_budgets(run, config, sources, learners[MAIN], adapter, key, report.tuned)
        run.forget_metrics(lambda row: bool(row["round"] > config.rounds))
        report_path = _finish(run, sources, adapter, report, facts, findings) if processes.is_main else None
        if config.account and report is not None and processes.is_main:
            write_accounts(run.path, report, adapter, sources, config)
        processes.barrier()
    return Run(run.path, adapter, report, report_path, processes.is_main)


def learned_from(config: TrainConfig, learner: Learner, prompts: int) -> int:
    """The responses that a head of a run learns from: those of its steps where it learns on policy, else those of the rounds."""
    return config.rounds * (config.steps * config.pairs_per_step if learner.on_policy else prompts * config.rollouts)


def make_learners(config: TrainConfig, space: KnobSpace, segmenter: Segmenter) -> dict[str, Learner]:
    """The learner of a run on its features, and on statistics of the logits alone: the rival."""
    kind, settings = find_learner(config.learner), config["learner"]
    parts = {MAIN: check_features(config.features), RIVAL: check_rival(config.rival_features)}
    return {
        part: kind(settings, Inputs(space, segmenter, features, config.hidden, config.rank, config.factorised, config.first_round,
                                    config.seed, config.rollouts))
        for part, features in parts.items()
    }  # fmt: skip


def check_module(learner: Learner, features: int) -> None:
    """Refuses, by a ConfigError, a learner whose module no adapter can hold, before anything is sampled."""
    with torch.random.fork_rng(devices=[]):
        module = learner.module(torch.zeros(features, dtype=torch.float64), torch.ones(features, dtype=torch.float64))
    if not isinstance(module, Head):
        raise ConfigError(
            f"The learner {learner.name!r} trains a {type(module).__name__}, which an adapter cannot hold. Let its `module` "
            "return a latentknobs.heads.base.Head, e.g. an OptionHead."
        )


def _begin(run: RunDir, config: TrainConfig, learner: Learner, sources: Sources, used: int) -> None:
    """Says what the features will take, `used` being the most rollouts of a round that the learner keeps; writes the settings."""
    others = sources.preferences.rollouts if sources.preferences else ()
    responses, columns = used * (config.rounds - bool(others)) + len(others), learner.columns(learner.settings)
    own = row_bytes(columns, learner.inputs.space.K, int(sources.model.config.get_text_config().vocab_size))
    F = width(config.features, sources.engine.hidden_size or 0) + 1
    row = F * getattr(torch, config.feature_dtype).itemsize + own
    each = any(column.reduce == "token" for column in columns.values())
    size = row * responses * most_segments("token" if each else config.level, config.max_new_tokens)
    if each:
        say(f"Features take {row:,} bytes a token, {own:,} of these for logits; {decimal(size)} at most.")
    if warning := disk_warning(run.path, size):
        say(warning)
    with explained(run.path, "config.yaml"):
        say_changes(run.path, config)
        write_yaml(config, run.path / "config.yaml")
        write_readme(run.path)


def unversioned_line(sources: Sources, resume: bool) -> str | None:
    """One sentence on rewards of which nothing says whether they have changed, None if there are none."""
    names = [repr(name) for rewards in (sources.reward, sources.second) if rewards for name in rewards.unversioned]
    if not names:
        return None
    fact = f"The reward {' and '.join(dict.fromkeys(names))} has no `version`"
    if resume:
        return f"{fact}: finished scores are reused because this run is resumed."
    return f"{fact}: every new run computes its scores again, and resume=True keeps those that an earlier run has finished."


def _finish(
    run: RunDir, sources: Sources, adapter: KnobAdapter, report: Report | None, facts: Facts, findings: list[str]
) -> Path | None:
    """The adapter and what people read, from finished stages."""
    with explained(run.path, "the adapter"):
        if report is None:  # results of an earlier head do not apply to this one
            for stale in (SUMMARY, "report.html"):
                (run.path / stale).unlink(missing_ok=True)
            adapter.save_pretrained(run.path / "adapter")
            write_findings(run.path, [*diagnose(facts), *findings])
            return None
        adapter.training |= {RESULT: report.verdict()} | {
            f"{GAIN}{name_of(row.policy, report)}": signed(row.gain)
            for row in report.table() if row.task == ALL and row.policy in (report.tuned, GREEDY, *CONTROLS)
        }  # fmt: skip
        adapter.save_pretrained(run.path / "adapter")
        facts = replace(facts, head_length=mean_length(run.path, HEAD), constant_length=mean_length(run.path, report.tuned))
        write_findings(run.path, [*diagnose(facts), *findings])
        write_samples(run.path, adapter.space, sources.evaluation, report.tasks, sources.tokenizer)
        return write_report(run.path, report)


def _adapter(config: TrainConfig, learner: Learner, sources: Sources, modules: Modules) -> KnobAdapter:
    assert isinstance(modules.main, Head) and isinstance(modules.rival, Head)  # `check_module`
    known, values = fields(config.learner), config.flat() | {"engine": sources.engine.identity}  # no address of a server
    shown = [name for name, one in known.items() if one.enters != Enters() and one.section != "space" and name not in UNSHOWN]
    training = {WEIGHTS: weights(sources.model)}
    training |= {name: json.dumps(v, ensure_ascii=False) if isinstance(v := values[name], list) else str(v) for name in shown}
    inputs, base = learner.inputs, describe_model(sources.model)
    if sources.preferences is None:
        count = learned_from(config, learner, len(sources.train))
        training["trained on"] = f"{count:,} responses to {len(sources.train):,} prompts"
    return KnobAdapter(
        inputs.space, modules.main, inputs.segmenter, config.features, base, modules.rival, config.rival_features, training
    )


def _named(value: Any, several: bool) -> str | tuple[str, ...]:
    """What the config says about an argument: itself where it is text, otherwise that it was an object."""
    if isinstance(value, str | Path):
        return str(value)
    if several and isinstance(value, list | tuple):
        return tuple(str(_named(one, False)) for one in value)
    return f"{getattr(value, '__name__', type(value).__name__)} {OBJECT}"


def _spec(knob: Any) -> Any:
    """A knob object as the config says it, so that `config.yaml` makes an equal one."""
    if not isinstance(knob, DecodingKnob):
        return knob
    settings = knob.model_dump(mode="json")
    return {knob.name: settings if len(settings) > 1 else settings["options"]}
