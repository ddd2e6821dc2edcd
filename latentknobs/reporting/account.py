"""The account of an evaluation on a terminal and in the report: one table over all policies, and the trade-off as a plot."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.text import Text

from latentknobs.evaluation.accounting import TERMS, Account, Unit
from latentknobs.evaluation.report import HEAD, Report
from latentknobs.evaluation.statistics import estimate
from latentknobs.reporting import svg
from latentknobs.reporting.console import name_of, stdout, titled

HEADINGS = {
    "sensibleness": "sensibleness",
    "diversity": "diversity",
    "attribution": "attribution",
    "log_prob": "log P of the text",
}


def rows(accounts: Mapping[str, Account], report: Report, unit: Unit = "token") -> list[tuple[str, list[str]]]:
    """For each policy its mean reward and its terms in nats, with 95 % intervals over prompts (and training seeds)."""
    found = []
    for policy, one in accounts.items():
        reward = estimate(report.rewards[policy][:, report.judged_P].mean(0))
        intervals = [one.of(term, unit) for term in shown(accounts)]
        found.append((policy, [f"{reward.mean:.3f}", *(str(interval) for interval in intervals)]))
    return found


def shown(accounts: Mapping[str, Account]) -> list[str]:
    """The terms that were read: attribution only where prompts name their evidence."""
    return [term for term in TERMS if all(getattr(one, term) is not None for one in accounts.values())]


def print_accounts(accounts: Mapping[str, Account], report: Report, unit: Unit = "token") -> None:
    """Prints the table."""
    headings = ("", "mean reward", *(HEADINGS[term] for term in shown(accounts)))
    table = titled(f"What each policy trades, in nats per {unit}", *headings)
    for policy, cells in rows(accounts, report, unit):
        table.add_row(Text(name_of(policy, report), style="bold" if policy == HEAD else ""), *cells)
    stdout().print(table)


def front(x_P: Sequence[float], y_P: Sequence[float]) -> list[int]:
    """Indices of the points that no other point beats in both, by ascending x."""
    best, kept = -np.inf, list[int]()
    for i in sorted(range(len(x_P)), key=lambda i: (-x_P[i], -y_P[i])):
        if y_P[i] > best:
            best = y_P[i]
            kept.append(i)
    return kept[::-1]


def trade_off(accounts: Mapping[str, Account], report: Report) -> Markup:
    """Reward, and attribution where it was read, against diversity, with the front of all constant settings."""
    policies = list(accounts)
    diversity_P = [float(accounts[policy].by_prompt("diversity").mean()) for policy in policies]
    panels = {"mean reward": [float(report.rewards[policy][:, report.judged_P].mean()) for policy in policies]}
    if "attribution" in shown(accounts):
        panels["attribution, nats per token"] = [float(accounts[p].by_prompt("attribution").mean()) for p in policies]
    constants = [i for i, policy in enumerate(policies) if policy in report.tuning]

    def draw() -> Figure:
        figure, axes = svg.panels(len(panels), 2.9)
        for axis, (label, value_P) in zip(axes, panels.items(), strict=True):
            best = [constants[i] for i in front([diversity_P[i] for i in constants], [value_P[i] for i in constants])]
            axis.plot([diversity_P[i] for i in best], [value_P[i] for i in best], color=svg.LINE, linewidth=1.4)
            for i, policy in enumerate(policies):
                colour = svg.HEAD if policy == HEAD else svg.LINE if i in constants else svg.MUTED
                axis.plot(diversity_P[i], value_P[i], "o", color=colour, markersize=7 if policy == HEAD else 4, zorder=3)
                if i in best or i not in constants:
                    axis.annotate(policy, (diversity_P[i], value_P[i]), (4, 3), textcoords="offset points", fontsize=7)
            axis.set(xlabel="diversity, nats per token", ylabel=label)
        return figure

    return svg.svg("trade-off", "Reward and attribution of every policy against the diversity of its choices", draw)
