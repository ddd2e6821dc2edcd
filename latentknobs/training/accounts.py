"""`account()`: what every policy of a finished run's evaluation traded, from its files and the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentknobs.adapter import KnobAdapter
from latentknobs.config import OBJECT, TrainConfig, flat, make_config, read_yaml
from latentknobs.data.rollouts import Rollout
from latentknobs.errors import ConfigError, RunError
from latentknobs.evaluation.accounting import Account, account_of, join_accounts, save_accounts
from latentknobs.evaluation.comparison import constant_of, same_as
from latentknobs.evaluation.report import BINNED, MEAN, PER_TASK, SHUFFLED, TRAINED, Report
from latentknobs.files import path_of
from latentknobs.knobs.space import KnobSpace
from latentknobs.models.sources import Sources, gather
from latentknobs.models.world import left_as_it_was
from latentknobs.policies import Policy
from latentknobs.progress import progress, say
from latentknobs.reporting import write_report
from latentknobs.training.judging import read_report, responses, stages_of
from latentknobs.training.several import first_seed
from latentknobs.training.subject import WEIGHTS, weights

SOURCES = ("model", "prompts", "eval_prompts", "preferences")
LEFT_OUT = ("reward", "second_reward", "reward_weights")  # nothing is scored again


def account(run: str | Path, **settings: Any) -> dict[str, Account]:
    """Reads every response of a run's evaluation again, and writes `evaluation/account.json` and the report with it.

    Args:
        run: its folder; of several training seeds that of all.
        settings: what was a Python object in `train` and cannot be read from the run (`model` with its `tokenizer`, `prompts`,
            `eval_prompts`, `preferences`), and settings such as `device` and `batch_size` that differ now.

    Raises:
        RunError: there is no evaluation, its responses are not there or are those of other prompts, or the model has other
            weights than that of the run.
        ConfigError: something was a Python object and is not passed.
    """
    run = path_of(run)
    report = read_report(run)
    if (first := first_seed(run)) != run:
        report.accounts = join_accounts([account(run / f"seed-{n}", **settings) for n in range(report.runs)])
        save_accounts(run, report.rewards, report.accounts)
        write_report(first, report, run / "report.html")
        return report.accounts
    with left_as_it_was(settings.get("model")):
        config, sources = reopened(run, settings)
        adapter = KnobAdapter.from_pretrained(run / "adapter")
        if adapter.training.get(WEIGHTS, "") not in ("", weights(sources.model)):
            raise RunError(
                f"The weights of the model {config.model!r} are not those that wrote the responses in {str(run)!r}, or have "
                "another dtype. Give the model of the run, in its dtype, or train again."
            )
        return write_accounts(run, report, adapter, sources, config)


def write_accounts(
    run: Path, report: Report, adapter: KnobAdapter, sources: Sources, config: TrainConfig
) -> dict[str, Account]:  # fmt: skip
    """The accounts of a finished run on its own sources, written into its files and its report."""
    add_accounts(report, sources, _answers(run, report, adapter, sources, config), config.batch_size)
    save_accounts(run, report.rewards, report.accounts)
    write_report(run, report)
    return report.accounts


def add_accounts(
    report: Report, sources: Sources, answers: Mapping[str, tuple[list[Rollout], KnobSpace]], batch_size: int,
    known: dict[int, Account] | None = None,
) -> None:  # fmt: skip
    """Puts the accounts of its policies into a report; says first what they cost.

    Args:
        answers: of each policy, its responses to the held-out prompts, and its knobs. One list is read once.
        known: accounts by the `id` of their lists, to which it adds.
    """
    prompts, known = sources.evaluation, {} if known is None else known
    new = {id(rollouts): (rollouts, space) for rollouts, space in answers.values() if id(rollouts) not in known}
    count = sum(len(rollouts) for rollouts, _ in new.values())
    tokens = sum(len(rollout.ids) for rollouts, _ in new.values() for rollout in rollouts)
    passes = "two forward passes" if all(prompt.second_ids for prompt in prompts) else "one forward pass"
    say(f"Reads {count} responses of {len(new)} policies again, {tokens} tokens: {passes} for each.")
    with progress("account", count) as advance:
        for key, (rollouts, space) in new.items():
            known[key] = account_of(sources.engine, prompts, rollouts, space, batch_size=batch_size, advance=advance)
    report.accounts = {name: known[id(rollouts)] for name, (rollouts, _) in answers.items()}
    if PER_TASK in report.rewards:
        report.accounts[PER_TASK] = Account.select(report.accounts, report.constants_by_task)


def reopened(run: Path, settings: dict[str, Any]) -> tuple[TrainConfig, Sources]:
    """The settings and the sources of a run, without its rewards; see `account`."""
    saved = {name: value for name, value in flat(read_yaml(run / "config.yaml")).items() if name not in LEFT_OUT}
    objects = {name: settings[name] for name in ("tokenizer", *SOURCES) if settings.get(name) is not None}
    for name in SOURCES:
        if str(saved.get(name)).endswith(OBJECT) and saved.pop(name) and name not in objects:
            raise ConfigError(
                f"In {str(run)!r} the setting {name} was a Python object. Pass it again: latentknobs.account(run, {name}=...)."
            )
    others = {name: value for name, value in settings.items() if name not in ("tokenizer", *SOURCES)}
    named = {name: str(objects.pop(name)) for name in SOURCES if isinstance(objects.get(name), str | Path)}
    config = make_config(saved, others | named)
    return config, gather(config, reward="repetition", **objects)


def _answers(
    run: Path, report: Report, adapter: KnobAdapter, sources: Sources, config: TrainConfig
) -> dict[str, tuple[list[Rollout], KnobSpace]]:
    prompts = sources.evaluation
    if len(prompts) != len(report.tasks):
        raise RunError(
            f"The evaluation in {str(run)!r} is of {len(report.tasks)} prompts, and its settings now give {len(prompts)}. "
            "Restore the prompts, or train again."
        )
    everyone: dict[str, Policy] = {name: constant_of(adapter.space, name) for name in report.tuning}  # also beyond the grids
    everyone |= stages_of(config, adapter.space, sources)[1].policies(adapter, config.pick)
    built = {name: everyone[name] for name in report.rewards if name in everyone}
    same = {name: same_as(name, built) for name in built}
    read = {name: _rollouts(run, "evaluation", name, len(prompts)) for name in set(same.values())}
    found = {name: (read[one], built[one].space) for name, one in same.items()}
    if TRAINED in report.rewards:  # what the adapter holds is simpler than the head that was trained, in the same space
        found[TRAINED] = _rollouts(run, "evaluation", TRAINED, len(prompts)), adapter.space
    for name in filter(report.rewards.__contains__, (MEAN, SHUFFLED, BINNED)):  # controls of the head choose in its space
        found[name] = _rollouts(run, "controls", name, len(prompts)), adapter.space
    return found


def _rollouts(run: Path, stage: str, policy: str, prompts: int) -> list[Rollout]:
    found = sorted(responses(run, stage, policy), key=lambda rollout: rollout.prompt)
    if not found or found[-1].prompt != prompts - 1:
        folder = run / stage / "rollouts"
        raise RunError(f"The responses of {policy!r} in {str(folder)!r} are not complete. Run the training again: it resumes.")
    return found
