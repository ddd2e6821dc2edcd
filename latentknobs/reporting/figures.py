"""The report's plots, each as inline SVG: win rates, reward of every constant, chosen values, training curves."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import BaseModel, Field

from latentknobs.data.rollouts import Rollout
from latentknobs.evaluation.report import HEAD, Comparison, Report
from latentknobs.reporting import svg
from latentknobs.reporting.samples import Samples

Table = Mapping[tuple[str, str], Comparison]  # (policy, task) -> comparison
CHANCE = float(np.log(2))  # loss of a head that prefers nothing
MOST = 24  # policies in one plot; a space of many options has many constants


class Metrics(BaseModel):
    """A row of a run's `metrics.jsonl`: a step of training one head, with validation at some of them."""

    round: int = Field(ge=1)
    head: str
    step: int = Field(ge=1)
    loss: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    reward: float | None = None
    rollouts: int | None = None
    dropped: int = 0
    prompts: int = 0
    stopped: str | None = None


def shown_policies(report: Report, table: Table) -> list[str]:
    """Baselines in the order of the evaluation; of very many constants only the best ones and the tuned one."""
    baselines = [name for name in report.rewards if name != HEAD]
    ranked = sorted(baselines, key=lambda name: (name in report.tuning, -table[name, "all"].reward.mean))
    keep = {report.tuned, *ranked[:MOST]}
    return [name for name in baselines if name in keep]


def win_rates(report: Report, table: Table) -> Markup:
    """Share of prompts on which the head beats each baseline, per task, on the whole scale from 0 to 100 %."""
    names = shown_policies(report, table)

    def draw() -> Figure:
        figure, axes = svg.panels(len(report.task_names), 0.5 + 0.23 * len(names), sharey=True, sharex=True)
        place_P = np.arange(len(names))[::-1]
        for axis, task in zip(axes, report.task_names, strict=True):
            wins = [table[name, task].wins for name in names]
            mean_P, low_P, high_P = (100 * np.array([getattr(w, part) for w in wins]) for part in ("mean", "low", "high"))
            axis.axvline(50, color=svg.MUTED, linewidth=1, linestyle=(0, (3, 2)))
            axis.hlines(place_P, low_P, high_P, color=svg.HEAD, linewidth=2, clip_on=False)
            is_shown_P = np.array([table[name, task].sign != 0 for name in names])
            for shown, fill in ((is_shown_P, svg.HEAD), (~is_shown_P, svg.PAPER)):
                if not shown.any():
                    continue  # nothing, unclipped, would count in the layout as a mark far to the left
                axis.plot(mean_P[shown], place_P[shown], "o", color=svg.HEAD, mfc=fill, markersize=4.5, clip_on=False, zorder=3)
            axis.set(xlim=(0, 100), xticks=[0, 50, 100], title=_title(task, report), ylim=(-0.6, len(names) - 0.4))
            axis.grid(axis="y", visible=False)
            for label, side in zip(axis.get_xticklabels(), ("left", "center", "right"), strict=True):
                label.set(horizontalalignment=side)
        axes[0].set_yticks(place_P, names)
        figure.supxlabel("prompts won by the head, %", fontsize=9, color=svg.MUTED)
        return figure

    return svg.svg("wins", "Win rate of the learned head against every baseline, with 95 % intervals", draw)


def rewards_of_constants(report: Report, table: Table, samples: Samples) -> Markup:
    """Mean reward of every constant option against its value of the first knob, with the head as a line."""
    knob = samples.knobs[0]
    labels = [name for name in report.tuning if name in report.rewards and name.split()[0] == knob]
    value_K, constants = zip(*sorted((float(name.split()[1].strip(",")), name) for name in labels), strict=True)

    def draw() -> Figure:
        figure, axes = svg.panels(len(report.task_names), 2.3)
        for axis, task in zip(axes, report.task_names, strict=True):
            ours = table[HEAD, task].reward
            axis.axhspan(ours.low, ours.high, color=svg.HEAD, alpha=0.14, linewidth=0)
            axis.axhline(ours.mean, color=svg.HEAD, linewidth=1.8)
            rewards = [table[name, task].reward for name in constants]
            mean_K = np.array([r.mean for r in rewards])
            error_2K = np.array([[r.mean - r.low for r in rewards], [r.high - r.mean for r in rewards]])
            link = "-" if len(samples.knobs) == 1 else ""
            axis.errorbar(value_K, mean_K, error_2K, fmt=f"o{link}", color=svg.LINE, markersize=4, linewidth=1.2, elinewidth=1)
            axis.set_title(_title(task, report))
        axes[0].set_ylabel("mean reward")
        figure.supxlabel(knob, fontsize=9, color=svg.MUTED)
        return figure

    return svg.svg("constants", f"Mean reward at every constant {knob} and of the learned head, per task", draw)


def chosen_values(report: Report, rollouts: Sequence[Rollout], samples: Samples, knob: str) -> Markup:
    """How often the head chose each value of a knob, per task; every response counts the same, however long."""
    values = sorted({option[knob] for option in samples.options})
    tasks = report.task_names[1:] or report.task_names

    def draw() -> Figure:
        figure, axes = svg.panels(len(tasks), 1.75, sharey=True)
        for axis, task in zip(axes, tasks, strict=True):
            mine = [r for r in rollouts if len(tasks) == 1 or report.tasks[r.prompt] == task]
            share_V = 100 * np.mean([_shares(r, samples, knob, values) for r in mine], axis=0)
            bars = axis.bar(range(len(values)), share_V, color=svg.HEAD, width=0.72)
            axis.bar_label(bars, [f"{share:.0f}" if share >= 0.5 else "" for share in share_V], fontsize=8, color=svg.MUTED)
            axis.set(title=_title(task, report), ylim=(0, 109), yticks=[0, 50, 100])
            axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            axis.grid(axis="x", visible=False)
        axes[0].set_ylabel("% of tokens")
        figure.supxlabel(knob, fontsize=9, color=svg.MUTED)
        return figure

    return svg.svg(f"chosen-{knob}", f"How often the head chose each {knob}, per task", draw)


def learning_curve(rows: Sequence[Metrics]) -> Markup:
    """Mean reward of the responses of each step against the number of responses so far, for a learner on policy."""
    reward_M = np.array([row.reward for row in rows], dtype=float)
    rollouts_M = np.cumsum(np.diff([row.rollouts or 0 for row in rows], prepend=0).clip(min=0))

    def draw() -> Figure:
        figure, [axis] = svg.panels(1, 2.1)
        axis.plot(rollouts_M, reward_M, color=svg.LINE, linewidth=0.6, alpha=0.35)
        axis.plot(rollouts_M, _smooth(reward_M), color=svg.HEAD, linewidth=1.6)
        axis.set(title="Mean reward of a step's responses, while options are sampled", xlabel="responses so far")
        return figure

    return svg.svg("training", "Mean reward of the responses of each step against the number of responses", draw)


def training_curves(rows: Sequence[Metrics]) -> Markup:
    """Loss and preference accuracy of one head over the steps of all rounds."""
    longest = max(row.step for row in rows)
    step_M = np.array([row.step + longest * (row.round - 1) for row in rows])
    loss_M = np.array([row.loss for row in rows])
    validated_M = np.array([row.validation_loss is not None for row in rows])
    loss_C, accuracy_C = (
        np.array([getattr(row, name) for row, is_one in zip(rows, validated_M, strict=True) if is_one], dtype=float)
        for name in ("validation_loss", "validation_accuracy")
    )

    is_paired = any(row.validation_accuracy is not None for row in rows) or not validated_M.any()

    def draw() -> Figure:
        figure, (losses, *others) = svg.panels(1 + is_paired, 2.1)
        accuracies = others[0] if others else None
        losses.plot(step_M, loss_M, color=svg.LINE, linewidth=0.6, alpha=0.35)
        losses.plot(step_M, _smooth(loss_M), color=svg.LINE, linewidth=1.6, label="training")
        losses.set(title="Loss", xlabel="step")
        if validated_M.any():
            losses.plot(step_M[validated_M], loss_C, "o-", color=svg.HEAD, markersize=3, label="validation")
        if accuracies is not None:  # of learners that compare pairs
            losses.axhline(CHANCE, color=svg.MUTED, linewidth=1, linestyle=(0, (3, 2)))
            losses.set(title="Loss (dashed: a head that prefers nothing)")
            accuracies.axhline(50, color=svg.MUTED, linewidth=1, linestyle=(0, (3, 2)))
            accuracies.set(title="Held-out pairs ordered rightly, %", xlabel="step", ylim=(0, 100))
            if validated_M.any():
                accuracies.plot(step_M[validated_M], 100 * accuracy_C, "o-", color=svg.HEAD, markersize=3)
        losses.legend(loc="best", fontsize=8, labelcolor=svg.MUTED)
        _mark_rounds([losses, *others], max(row.round for row in rows), longest)
        return figure

    return svg.svg("training", "Training loss, validation loss and validation accuracy over the steps", draw)


def _title(task: str, report: Report) -> str:
    """A single panel needs none."""
    return task if len(report.task_names) > 1 else ""


def _shares(rollout: Rollout, samples: Samples, knob: str, values: Sequence[float]) -> list[float]:
    chosen = [samples.options[k][knob] for k in rollout.options or ()]
    return [chosen.count(value) / max(len(chosen), 1) for value in values]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over 15; narrower at the ends."""
    half = min(15, len(values)) // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _mark_rounds(axes: Sequence[Axes], rounds: int, longest: int) -> None:
    for axis in axes:
        for number in range(1, rounds):
            axis.axvline(number * longest, color=svg.GRID, linewidth=1.5)
