"""The HTML report: one file, no scripts, nothing loaded from elsewhere, light and dark."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import latentknobs
from latentknobs.config import flat, read_yaml
from latentknobs.errors import ConfigError, RunError
from latentknobs.evaluation.evaluate import ALL, HEAD, Report
from latentknobs.reporting import figures
from latentknobs.reporting.colours import Scale
from latentknobs.reporting.console import name_of, percent, signed
from latentknobs.reporting.findings import CALM, HEADING, read_findings
from latentknobs.reporting.samples import Sample, Samples, head_responses, read_samples

FILE = "report.html"


@dataclass(frozen=True)
class Token:
    """One token of the heat map: its text, its background, and what hovering over it tells."""

    text: str
    css: str
    title: str
    special: bool


def write_report(run: str | Path, report: Report) -> Path:
    """Writes `report.html` into a run directory and returns its path.

    Args:
        run: a run directory with an evaluation and its samples (see `write_samples`), and perhaps findings.
        report: that evaluation.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    run = Path(run)
    samples = read_samples(run)
    table = {(row.policy, row.task): row for row in report.table()}
    rollouts = head_responses(run)
    scale = Scale.of(samples.knobs[0], samples.options)
    training, stops = _training(run)
    environment = Environment(loader=PackageLoader("latentknobs", "templates"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"signed": signed, "percent": percent}
    html = environment.get_template("report.html").render(
        version=latentknobs.__version__,
        settings=_settings(run),
        report=report,
        table=table,
        head=HEAD,
        names={policy: name_of(policy, report) for policy in report.rewards},
        seeds=len(report.rewards[HEAD]),
        counts=_counts(report),
        heading=HEADING,
        findings=read_findings(run),
        calm=CALM,
        mood=_mood(report),
        samples=samples,
        scale=scale,
        wins=figures.win_rates(report, table),
        constants=figures.rewards_of_constants(report, table, samples),
        chosen=[figures.chosen_values(report, rollouts, samples, knob) for knob in samples.knobs],
        training=training,
        stops=stops,
        responses=[
            (task, [(s, _tokens(s, samples, scale), report.rewards[HEAD][0, s.prompt]) for s in samples.shown if s.task == task])
            for task in sorted({s.task for s in samples.shown})
        ],
    )
    partial = run / (FILE + ".partial")
    partial.write_text(html, encoding="utf-8")
    return partial.replace(run / FILE)


def _tokens(sample: Sample, samples: Samples, scale: Scale) -> list[Token]:
    made: list[Token] = []
    for piece, special, k in zip(sample.pieces, sample.special, sample.options, strict=True):
        title = f"{samples.labels[k]} · option {k} · token {len(made) + 1}"
        made.append(Token(piece, scale.css(samples.value(scale.knob, k)), title, special))
    return made


def _mood(report: Report) -> str:
    """`good`, `bad` or `even`: how the head compares with the tuned best constant."""
    gain = report.compare(report.tuned).gain
    return "good" if gain.low > 0 else "bad" if gain.high < 0 else "even"


def _counts(report: Report) -> dict[str, int]:
    """How many prompts of each task, and of all, are judged."""
    tasks = [task for task, kept in zip(report.tasks, report.judged_P, strict=True) if kept]
    return {**Counter(tasks), ALL: len(tasks)}


def _training(run: Path) -> tuple[Markup | None, list[str]]:
    """The curves of the main head, and why rounds ended early."""
    try:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        stopped = [row for row in rows if row["head"] == "main" and "stopped" in row]
        told = [f"Round {row['round']} stopped after step {row['step']}: {row['stopped']}." for row in stopped]
        return figures.training_curves(rows), told
    except OSError:
        return None, []
    except (ValueError, KeyError) as error:
        raise RunError(f"{str(run / 'metrics.jsonl')!r} is damaged ({error!r}). Delete it to do without the curves.") from None


def _settings(run: Path) -> dict[str, Any]:
    try:
        return flat(read_yaml(run / "config.yaml"))
    except ConfigError as error:
        raise RunError(f"{error} Train again with the same settings.") from None
