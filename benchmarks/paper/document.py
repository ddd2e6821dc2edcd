"""docs/paper.md and a page of tables for each recipe, written from the recipes' texts and the summaries in `results/`.

Nothing on these pages is typed by hand.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.paper.baselines import SOURCES
from benchmarks.paper.claims import FAILS, VERDICTS
from benchmarks.paper.figures import draw
from benchmarks.paper.recipe import Recipe, forecast, names, read_recipe

HEADER = """\
# The paper, and beyond

What arXiv 2411.09661 (Dhuliawala et al. 2024, "Adaptive Decoding via Latent Preference Optimization") claims, and what came out
when its experiments, and some beyond them, were run with this library on small models (`python -m benchmarks.paper run NAME`;
`make paper` runs a reduced version of everything; this page and its tables are written by `python -m benchmarks.paper table`).

The learned head and everybody it is compared with answer the same held-out prompts with the same random numbers. **Gain** is
the mean of the head minus the other's, paired by prompt, with a 95 % interval over prompts and training seeds
([evidence](evidence.md) says which); **wins** is the head's win rate in %, ties one half; **p** is that of the gain after
one correction (Holm) for all comparisons of a page, half of the error for the conclusions and half for the tables. A
conclusion holds, or does not, where its corrected p is below .05; else it cannot be told. Prompts are split by template, or
by a hash of the text where there is none: a fifth is held out; of the rest, a fifth (dev) is where constants, rules and
settings are chosen. Heads are trained with Eq. 11 (`latent`) where nothing else is said; the paper trained with Eq. 10.
"""

SMALL = {"full": "", "reduced": " **Reduced size.**", "smoke": " **Smoke size: the figures mean nothing.**"}
RIVALS = """\
## The rivals

Every constant, the best of them on dev prompts, and the best for each task; greedy decoding and the uniform mixture of the
options; a head of the same kind that sees five statistics of the next-token distribution and no hidden state, from the same
rollouts; and three controls made of the head's own choices: the constant at their mean, and the choices shuffled, also
within bins of entropy and p_max. What is tuned is tuned on dev prompts over the grid given here, which grows where the best
member lies on its edge:

| name | what |
|---|---|
"""


COST = """\
## What it takes

Minutes of processor time (one thread of a CPU, 2026-11-26): the rivals + each training seed. Pieces may run side by side
(`--piece`), and `run` says the sum before it starts. `make paper`, reduced and with one training seed on two cores: """


def write_page(results: Path, page: Path) -> None:
    """Writes the summary, the pages of tables (`paper/` beside it) and their plots (`images/paper/`)."""
    folder = page.parent / page.stem
    folder.mkdir(parents=True, exist_ok=True)
    sections = [HEADER]
    for name in names():
        path, recipe = results / f"{name}.json", read_recipe(name)
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        sections.append(_summary(name, recipe, summary))
        (folder / f"{name}.md").write_text(_tables(name, recipe, summary, page.parent), encoding="utf-8")
    pages = "\n".join(f"paper/{name}" for name in names())
    sections += [_rivals(), _cost(), f"```{{toctree}}\n:hidden:\n\n{pages}\n```\n"]
    page.write_text("\n".join(sections), encoding="utf-8")


def _rivals() -> str:
    return RIVALS + "".join(f"| `{name}` | {text} |\n" for name, text in SOURCES.items())


def _cost() -> str:
    """Minutes of every recipe, as far as they were measured."""
    lines = [COST + forecast(names(), "reduced", 1), "", "| recipe | reduced | full |", "|---|---|---|"]
    for name in names():
        took = [read_recipe(name).minutes.get(size) for size in ("reduced", "full")]
        lines.append(f"| `{name}` | {' | '.join(f'{one[0]:g} + {one[1]:g}' if one else 'not timed' for one in took)} |")
    return "\n".join([*lines, ""])


def _summary(name: str, recipe: Recipe, summary: dict[str, Any] | None) -> str:
    """What the paper claims and what was found, with one plot."""
    number = f" (section {recipe.section})" if recipe.section != "-" else ""
    lines = [f"## {recipe.title}{number}", ""]
    if recipe.section != "-":
        lines += [f"**The paper found.** {recipe.found.strip()}", ""]
    if summary is None:
        return "\n".join([*lines, "Not run yet.", ""])
    count = Counter(claim["verdict"] for part in summary["parts"].values() for claim in part["claims"])
    verdicts = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict])
    label = next(iter(summary["parts"]))
    lines += [f"**Here.** {recipe.agrees.strip()}" if recipe.agrees else "", ""]
    lines += ["**Measured under older rules**, which its page names.", ""] if "note" in summary["parts"][label] else []
    lines += [f"Conclusions: {verdicts}. [All tables](paper/{name}.md).", "", f"![{label}]({_image(name, label)})", ""]
    return "\n".join(lines)


def _tables(name: str, recipe: Recipe, summary: dict[str, Any] | None, folder: Path) -> str:
    """The page of a recipe: what was run, every table, every conclusion with its evidence."""
    lines = [f"# {recipe.title}", "", f"**The paper did.** {recipe.did.strip()}", ""]
    lines += [f"**We ran.** {recipe.ours.strip()}", "", "How to read the tables: [the paper, and beyond](../paper.md).", ""]
    if summary is None:
        return "\n".join([*lines, "Not run yet.", ""])
    for label, part in summary["parts"].items():
        lines += _part(name, label, part, folder)
    lines += ["## What agrees and what does not", "", "| conclusion | verdict | evidence |", "|---|---|---|"]
    for label, part in summary["parts"].items():
        for claim in part["claims"]:
            verdict = f"**{claim['verdict']}**" if claim["verdict"] == FAILS else claim["verdict"]
            lines.append(f"| {label}: {claim['say']} | {verdict} | {claim['evidence']} |")
    return "\n".join([*lines, ""])


def _image(name: str, label: str) -> str:
    return f"images/paper/{name}-{''.join(c if c.isalnum() else '-' for c in label)}.png"


def _part(name: str, label: str, part: dict[str, Any], folder: Path) -> list[str]:
    n = part["numbers"]
    tuned = "; ".join(f"{best} for {measure}" for measure, best in part["best"].items())
    seeds = f"{n['seeds']} training seed{'s' * (n['seeds'] > 1)}"
    commit = "" if part["commit"].endswith(("unknown", "+")) else f", commit `{part['commit']}`"
    if len(part["by_task"]) > 1:
        tuned += f"; by task: {', '.join(f'{name} on {task}' for task, name in part['by_task'].items())}"
    lines = [f"## {label}", "", f"{part['world']}: {n['train']} training, {n['dev']} dev, {n['held_out']} held-out prompts, "
             f"{n['copies']} samples each, {seeds}. "
             f"Heads learn from {n['learned_from']:,} responses a round, rivals are tuned on {n['tuned_on']:,}. "
             f"Best constant on dev: {tuned}.", "",
             f"`{part['command']}`, {part['date']}{commit}.{SMALL[part['size']]}", "",
             *([f"**{part['note']}**", ""] if "note" in part else [])]  # fmt: skip
    image = _image(name, label)
    draw(part, folder / image)
    first, *others = part["tables"]
    lines += [*_table(first), "", f"![{label}](../{image})", ""]
    lines += _win_grid(part)
    lines += _described(part)
    if "front" in part:
        gain, low, high = part["front"]["hypervolume gain"]
        axes = " and ".join(part["front"]["axes"])
        facts = f"learned minus static; {axes}; {len(part['front']['static'])} static settings; interval over prompts alone"
        lines += [f"Area between the fronts ({facts}): {gain:.4f} [{low:.4f}, {high:.4f}].", ""]
    if others:
        lines += ["<details><summary>All other tables</summary>", ""]
        lines += [line for table in others for line in [*_table(table), ""]]
        lines += ["</details>", ""]
    return lines


def _table(table: dict[str, Any]) -> list[str]:
    task = "" if table["task"] == "all" else f", {table['task']}"
    lines = [f"| {table['measure']}{task} | mean | gain of {table['subject']} | wins | p |", "|---|---|---|---|---|"]
    lines.append(f"| **{table['subject']}** | **{_interval(table['mean'])}** | | | |")
    for row in table["rows"]:
        lines.append(
            f"| {row['policy']} | {row['mean'][0]:.3f} | {_interval(row['gain'])} | {_percent(row['wins'])} | {row['p']:.4f} |"
        )
    return lines


def _win_grid(part: dict[str, Any]) -> list[str]:
    """Win rates by task against each constant, as the paper prints them."""
    subject, measure = part["tables"][0]["subject"], part["tables"][0]["measure"]
    tables = [t for t in part["tables"] if (t["subject"], t["measure"]) == (subject, measure) and t["task"] != "all"]
    if not tables:
        return []
    constants = part["groups"]["constants"]
    lines = [
        f"Win rates of {subject}, in %, against each constant:",
        "",
        f"| task | {' | '.join(constants)} |",
        "|---" * (len(constants) + 1) + "|",
    ]
    for table in tables:
        wins = {row["policy"]: row["wins"] for row in table["rows"]}
        lines.append(f"| {table['task']} | {' | '.join(_percent(wins[c]) for c in constants)} |")
    return [*lines, ""]


def _described(part: dict[str, Any]) -> list[str]:
    lines = []
    for name, players in part["described"].items():
        heads = {head: players[head] for head in part["groups"]["heads"]}
        tasks = list(next(iter(heads.values())))
        lines += [f"| {name} | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
        lines += [f"| {head} | {' | '.join(_interval(values[task]) for task in tasks)} |" for head, values in heads.items()]
        lines.append("")
    return lines


def _interval(values: list[float]) -> str:
    mean, low, high = values
    return "-" if mean != mean else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _percent(values: list[float]) -> str:
    mean, low, high = (100 * min(max(value, 0.0), 1.0) for value in values)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
