"""What `benchmarks.scaling` found, as figures (JSON), tables (Markdown) and a plot (PNG)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.scaling_plan import Cell, Plan, interval, saturation
from latentknobs.evaluation.statistics import Interval, estimate
from latentknobs.reporting import svg

COLOURS = {"mini": "#b8a13c", "small": "#8a8f98", "packaged": "#2a6fbb", "large": "#c2542d"}
ON_PAPER = {svg.INK: "#1c1e21", svg.MUTED: "#5c6068", svg.GRID: "#d9dce1"}
TITLES = {"pairs": "pairs (4 rollouts a prompt)", "rollouts": "rollouts per prompt (pairs fixed)"}
Found = Mapping[str, Any]


def summarise(found: Mapping[str, Found], plan: Plan) -> dict[str, Any]:
    """Gains over the tuned constant with their intervals, by model and axis, and where each axis saturates.

    Cells that are not finished are left out.
    """
    models = {}
    for size, results in found.items():
        constant_SP = np.array(results["constant"])
        gains = {name: np.array(cell["rewards"]) - constant_SP for name, cell in results["cells"].items()}
        tasks = np.array(results["tasks"])
        models[size] = {
            "parameters": results["parameters"],
            "training": results["training"],
            "tuned": results["tuned"],
            "tuning": results["tuning"],
            "constant": _plain(estimate(constant_SP.mean(0))),
            "tasks": {task: float(constant_SP[:, tasks == task].mean()) for task in sorted(set(tasks.tolist()))},
            "axes": {
                axis: _axis(axis, finished, gains, results["cells"], tasks)
                for axis, cells in plan.axes(size).items()
                if len(finished := [cell for cell in cells if cell.name in gains]) > 1
            },
        }
    return {"models": models, "sizes": _sizes(found, plan), "fixed_pairs": plan.fixed_pairs}


def _axis(
    axis: str, cells: Sequence[Cell], gains: Mapping[str, NDArray[np.float64]], raw: Mapping[str, Any], tasks: NDArray[np.str_]
) -> dict[str, Any]:
    first, below_last = saturation(np.array([gains[cell.name] for cell in cells]))
    rows = []
    for cell, left in zip(cells, below_last, strict=True):
        gain_SP = gains[cell.name]
        rows.append(
            {
                "value": cell.pairs if axis == "pairs" else cell.rollouts,
                "pairs": raw[cell.name]["pairs"],
                "gain": _plain(interval(gain_SP)),
                "heads": [float(value) for value in gain_SP.mean(1)],
                "by_task": {task: float(gain_SP[:, tasks == task].mean()) for task in sorted(set(tasks.tolist()))},
                "last_minus_this": _plain(left),
                "accuracy": float(np.mean(raw[cell.name]["accuracy"])),
                "temperature": float(np.mean(raw[cell.name]["temperature"])),
            }
        )
    return {"rows": rows, "saturates_at": rows[first]["value"]}


def _sizes(found: Mapping[str, Found], plan: Plan) -> dict[str, Any]:
    """The models side by side, at the most pairs that all of them have."""
    shared = [cell for cell in plan.axes(next(iter(found)))["pairs"] if all(cell.name in r["cells"] for r in found.values())]
    if not shared:
        return {"pairs": None, "rows": [], "saturates_at": None}
    name = shared[-1].name
    gain_CSP = np.array([np.array(r["cells"][name]["rewards"]) - np.array(r["constant"]) for r in found.values()])
    first, below_last = saturation(gain_CSP)
    rows = [
        {"value": size, "gain": _plain(interval(gain_SP)), "last_minus_this": _plain(left)}
        for size, gain_SP, left in zip(found, gain_CSP, below_last, strict=True)
    ]
    return {"pairs": shared[-1].pairs, "rows": rows, "saturates_at": rows[first]["value"]}


def tables(summary: Mapping[str, Any]) -> str:
    """One table an axis, in Markdown; a star marks the value at which an axis saturates."""
    parts = []
    for axis, title in TITLES.items():
        lines = [
            f"| LM | {title} | pairs | gain over the tuned constant | each head | last of the axis minus this | held-out pairs |"
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for size, model in summary["models"].items():
            if axis in model["axes"]:
                lines += _rows(size, **model["axes"][axis])
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _rows(size: str, rows: Sequence[Mapping[str, Any]], saturates_at: int) -> Iterator[str]:
    for row in rows:
        value = f"{row['value']:,}{' *' if row['value'] == saturates_at else ''}"
        counts = sorted(set(row["pairs"]))
        used = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        heads = ", ".join(f"{gain:+.3f}" for gain in row["heads"])
        last = "" if row is rows[-1] else _told(row["last_minus_this"])
        yield f"| {size} | {value} | {used} | {_told(row['gain'])} | {heads} | {last} | {100 * row['accuracy']:.0f} % |"


def _told(interval: Sequence[float]) -> str:
    mean, low, high = interval
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _plain(interval: Interval) -> list[float]:
    return [round(value, 5) for value in (interval.mean, interval.low, interval.high)]


def save_pages(summary: Mapping[str, Any], folder: Path) -> None:
    """Writes `scaling.json`, `tables.md` and `scaling.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scaling.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / "tables.md").write_text(tables(summary) + "\n", encoding="utf-8")
    shown = {name: ON_PAPER.get(value, value) if isinstance(value, str) else value for name, value in svg.STYLE.items()}
    with matplotlib.rc_context(shown):
        plot(summary).savefig(folder / "scaling.png", dpi=150, facecolor="white", metadata={"Software": None})


def plot(summary: Mapping[str, Any]) -> Figure:
    """Gain with 95 % intervals: against pairs, rollouts per prompt, and the size of the LM."""
    figure, panels = svg.panels(3, 9.6, 2.9, sharey=True)
    models, sizes = summary["models"], summary["sizes"]
    for panel, axis in zip(panels, TITLES, strict=False):
        ticks: set[float] = set()
        for size, model in models.items():
            if axis in model["axes"]:
                rows = model["axes"][axis]["rows"]
                ticks |= {row["value"] for row in rows}
                _line(panel, [row["value"] for row in rows], [row["gain"] for row in rows], COLOURS[size], size)
        _ticks(panel, sorted(ticks))
    if sizes["rows"]:
        million = [models[row["value"]]["parameters"] / 1e6 for row in sizes["rows"]]
        _line(panels[2], million, [row["gain"] for row in sizes["rows"]], ON_PAPER[svg.INK], "")
        _ticks(panels[2], million)
        panels[2].set(title=f"Size of the LM, {sizes['pairs']:,} pairs", xlabel="million parameters")
    panels[0].set(title="Pairs (4 rollouts a prompt)", xlabel="pairs", ylabel="gain over the tuned constant")
    panels[1].set(title=f"Rollouts, {summary['fixed_pairs']:,} pairs", xlabel="rollouts per prompt")
    panels[0].legend(fontsize=8, title="LM", title_fontsize=8, loc=(0.6, 0.12))
    return figure


def _line(panel: Axes, values: Sequence[float], gains: Sequence[Sequence[float]], colour: str, label: str) -> None:
    """One line with intervals; lines of several LMs are shifted a little, so as not to hide each other."""
    mean, low, high = np.array(gains).T
    shift = 1.0 + 0.04 * (list(COLOURS).index(label) - 1) if label else 1.0
    panel.errorbar(
        np.array(values) * shift, mean, [mean - low, high - mean], fmt="o-", color=colour, markersize=4, linewidth=1.4,
        elinewidth=1, label=label,
    )  # fmt: skip
    panel.axhline(0, color=ON_PAPER[svg.MUTED], linewidth=1, linestyle=(0, (3, 2)))


def _ticks(panel: Axes, values: Sequence[float]) -> None:
    """The measured values as the only ticks of a logarithmic axis."""
    panel.set_xscale("log")
    panel.set_xticks(values, [f"{value:.3g}" if value < 1000 else f"{value / 1000:g}k" for value in values])
    panel.minorticks_off()
