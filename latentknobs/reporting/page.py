"""The HTML report: one file that loads nothing from elsewhere, light and dark; its one script sorts tables."""

from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import latentknobs
from latentknobs.config import flat, make_config, read_yaml
from latentknobs.data.disk import write_text
from latentknobs.errors import LatentKnobsError, RunError
from latentknobs.evaluation.accounting import read_accounts
from latentknobs.evaluation.report import ALL, HEAD, Report
from latentknobs.files import fit, parse_json, read_text, without_folders
from latentknobs.reporting import figures
from latentknobs.reporting.account import HEADINGS, rows, shown, trade_off
from latentknobs.reporting.budgets import draw_budgets
from latentknobs.reporting.colours import Scale
from latentknobs.reporting.console import footnote, name_of, percent, probability, signed
from latentknobs.reporting.figures import Metrics
from latentknobs.reporting.findings import CALM, HEADING, left_out, read_findings
from latentknobs.reporting.samples import LARGEST, Sample, Samples, head_responses, read_samples, with_options

FILE = "report.html"


def write_report(run: str | Path, report: Report, path: str | Path | None = None) -> Path:
    """Writes an evaluation as HTML and returns the path.

    Args:
        run: a run directory with an evaluation and its samples (see `write_samples`), with or without findings.
        report: that evaluation, or one of several training seeds of which the run is the first.
        path: of the file; by default `report.html` in the run directory.

    Raises:
        RunError: a file of the run is missing or damaged, or two of them do not belong together.
    """
    run = Path(run)
    samples = read_samples(run)
    rollouts = [with_options(rollout, samples.options) for rollout in head_responses(run)]
    prompts = {rollout.prompt for rollout in rollouts} | {sample.prompt for sample in samples.shown}
    options = {k for rollout in rollouts for k in rollout.options or ()}
    if not (prompts <= {*range(len(report.tasks))} and options <= {*range(len(samples.options))}):
        raise RunError(f"The responses in {str(run)!r} are not those of its evaluation. Train again with the same settings.")
    table = {(row.policy, row.task): row for row in report.table()}
    scale = Scale.of(samples.knobs[0], samples.options)
    training, stops = _training(run)
    accounts = report.accounts or read_accounts(run, report.rewards)
    environment = Environment(loader=PackageLoader("latentknobs", "templates"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"signed": signed, "percent": percent, "probability": probability}
    html = environment.get_template("report.html").render(
        version=latentknobs.__version__,
        settings=_settings(run),
        report=report,
        table=table,
        head=HEAD,
        names={policy: name_of(policy, report) for policy in report.rewards},
        seeds=len(report.rewards[HEAD]) // report.runs,
        footnote=footnote(report),
        counts=_counts(report),
        heading=HEADING,
        findings=read_findings(run),
        calm=CALM,
        mood={1: "good", 0: "even", -1: "bad"}[report.row(report.tuned).sign],
        samples=samples,
        scale=scale,
        wins=figures.win_rates(report, table),
        constants=figures.rewards_of_constants(report, table, samples),
        chosen=[figures.chosen_values(report, rollouts, samples, knob) for knob in samples.knobs],
        account=rows(accounts, report),
        terms=[HEADINGS[term] for term in shown(accounts)],
        trade_off=trade_off(accounts, report) if accounts else None,
        budgets=draw_budgets(run, report),
        training=training,
        stops=stops,
        responses=[
            (task, [(s, _tokens(s, samples, scale), report.rewards[HEAD][0, s.prompt]) for s in samples.shown if s.task == task])
            for task in sorted({s.task for s in samples.shown})
        ],
    )
    write_text(path := Path(path or run / FILE), html)
    return path


def _tokens(sample: Sample, samples: Samples, scale: Scale) -> list[dict[str, Any]]:
    """For each token of the heat map its text, its background, its tooltip, and whether it is special."""
    return [
        {"text": piece, "css": scale.css(samples.options[k][scale.knob]), "special": special,
         "title": f"{samples.labels[k]} · option {k} · token {number}"}
        for number, (piece, special, k) in enumerate(zip(sample.pieces, sample.special, sample.options, strict=True), 1)
    ]  # fmt: skip


def _counts(report: Report) -> dict[str, int]:
    """How many prompts of each task, and of all, are judged."""
    tasks = [task for task, kept in zip(report.tasks, report.judged_P, strict=True) if kept]
    return {**Counter(tasks), ALL: len(tasks)}


def _training(run: Path) -> tuple[Markup | None, list[str]]:
    """The curves of the main head, why rounds ended early, and how many prompts steps left out."""
    path, cure = run / "metrics.jsonl", "Delete it to do without the curves."
    if not path.exists():
        return None, []
    try:
        lines = read_text(path, RunError, cure, LARGEST).splitlines()
        rows: list[Metrics] = fit([parse_json(line) for line in lines], list[Metrics])
    except ValueError as error:
        raise RunError(f"{str(path)!r} is damaged: {error}. {cure}") from None
    rows = [row for row in rows if row.head == "main"]
    stops = [f"Round {row.round} stopped after step {row.step}: {row.stopped}." for row in rows if row.stopped]
    stops += [sentence] if (sentence := left_out((row.dropped, row.prompts) for row in rows)) else []
    draw = figures.learning_curve if rows and rows[0].reward is not None else figures.training_curves
    return draw(rows) if rows else None, stops


def _settings(run: Path) -> dict[str, Any]:
    """What the report shows of the config, as far as its file has it: without the folders of this machine."""
    try:
        saved = flat(read_yaml(run / "config.yaml"))
        settings = {name: value for name, value in make_config(saved).flat().items() if name in saved}
    except LatentKnobsError as error:
        raise RunError(f"The settings in {str(run)!r} cannot be shown: {error} Train again with the same settings.") from None
    return {name: without_folders(value) if isinstance(value, str) else value for name, value in settings.items()}
