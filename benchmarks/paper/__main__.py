"""The paper's experiments, one command each.

python -m benchmarks.paper run repetition --size reduced
python -m benchmarks.paper run ultra --model path-or-hub-id --prompts train.jsonl
python -m benchmarks.paper all --size reduced       # what `make paper` does
python -m benchmarks.paper keep                     # the summaries of runs/paper into results/
python -m benchmarks.paper table                    # docs/paper.md from results/
"""

import datetime
import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import click
import torch

from benchmarks.paper.archive import unpacked
from benchmarks.paper.claims import VERDICTS
from benchmarks.paper.document import write_page
from benchmarks.paper.experiment import run_part
from benchmarks.paper.recipe import Size, names, read_recipe
from benchmarks.paper.worlds import MissingData

RESULTS = Path(__file__).parent / "results"
CODE = ("latentknobs", "plugins", "benchmarks/paper")  # what decides the figures


@click.group()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """The experiments of arXiv 2411.09661 and beyond."""
    torch.set_num_threads(threads)


size_option = click.option("--size", type=click.Choice(get_args(Size)), default="reduced", show_default=True)
out_option = click.option("--out", type=click.Path(path_type=Path), default=Path("runs/paper"), show_default=True)


@main.command()
@click.argument("name")
@click.option("--part", "chosen", multiple=True, help="Only this part; may be given several times.")
@click.option("--model", default=None, help="Folder or hub id, in place of the recipe's.")
@click.option("--prompts", default=None, help="A JSONL file or a source, in place of the recipe's.")
@size_option
@out_option
def run(name: str, chosen: tuple[str, ...], model: str | None, prompts: str | None, size: Size, out: Path) -> None:
    """Runs one recipe, or goes on with it."""
    show(run_recipe(name, size, out, chosen, model, prompts))


@main.command(name="all")
@size_option
@out_option
@click.option("--jobs", default=2, show_default=True, help="Recipes at a time, one thread each.")
def every(size: Size, out: Path, jobs: int) -> None:
    """Runs every recipe and says which conclusions hold."""
    started = time.monotonic()

    def one(name: str) -> int:
        command = [sys.executable, "-m", "benchmarks.paper", "--threads", "1", "run", name, "--size", size, "--out", str(out)]
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        failed = [name for name, code in zip(names(), pool.map(one, names()), strict=True) if code]
    verdicts: Counter[str] = Counter()
    for name in names():
        if name not in failed:
            summary = json.loads((out / f"{name}-{size}" / "summary.json").read_text(encoding="utf-8"))
            show(summary)
            verdicts.update(claim["verdict"] for part in summary["parts"].values() for claim in part["claims"])
    click.echo("\n" + ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS))
    click.echo(f"{time.monotonic() - started:.0f} s")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. The cause stands above; start again and everything finished is kept.")


@main.command()
@out_option
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def keep(out: Path, results: Path) -> None:
    """Takes every part's newest summary into `results/`, of the full size where there is one."""
    results.mkdir(exist_ok=True)
    for name in names():
        parts: dict[str, Any] = {}
        for size in ("reduced", "full"):
            path = out / f"{name}-{size}" / "summary.json"
            parts |= json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
        if parts:
            ordered = {label: parts[label] for label in read_recipe(name).parts if label in parts}
            text = json.dumps({"recipe": name, "parts": ordered}, indent=1) + "\n"
            (results / f"{name}.json").write_text(text, encoding="utf-8")
            click.echo(f"{name}: " + ", ".join(f"{label} ({part['size']})" for label, part in ordered.items()))


@main.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/paper.md"), show_default=True)
def table(results: Path, page: Path) -> None:
    """Writes docs/paper.md, its tables and its plots, from the summaries."""
    write_page(results, page)
    click.echo(f"Wrote {page}.")


def run_recipe(
    name: str, size: Size, out: Path, chosen: tuple[str, ...] = (), model: str | None = None, prompts: str | None = None
) -> dict[str, Any]:
    """The summary of a recipe, which is also written. Parts of an earlier run of the same size stay in it."""
    if name not in names():
        sys.exit(f"There is no recipe {name!r}. Recipes: {', '.join(names())}.")
    recipe = read_recipe(name)
    if unknown := set(chosen) - set(recipe.parts):
        sys.exit(f"{name!r} has no part {sorted(unknown)[0]!r}. Parts: {', '.join(recipe.parts)}.")
    path = out / f"{name}-{size}" / "summary.json"
    parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"] if chosen and path.exists() else {}
    about = {"size": size, "commit": commit(), "date": str(datetime.date.today())}
    wanted = {label: part for label, part in recipe.parts.items() if size in part.sizes and (not chosen or label in chosen)}
    with unpacked(path.parent):
        for label, part in wanted.items():
            own_model, _, own_source = part.world.rpartition(":")
            world = f"{model or own_model}:{prompts or own_source}"
            report(f"{name}, {label}, {size}")
            try:
                part_summary = run_part(part.model_copy(update={"world": world}), part.sizes[size], path.parent, report)
                command = f"python -m benchmarks.paper run {name} --size {size} --part '{label}'"
                parts[label] = about | {"command": command} | part_summary
            except MissingData as reason:
                report(f"{name}, {label} is skipped: {reason}")
    summary = {"recipe": name, "size": size, "title": recipe.title, "parts": parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def show(summary: dict[str, Any]) -> None:
    """Which conclusions hold."""
    click.echo(f"\n{summary['title']} ({summary['size']})")
    for label, part in summary["parts"].items():
        for claim in part["claims"]:
            click.echo(f"  {claim['verdict']}: {label}: {claim['say']}\n      {claim['evidence']}")


def report(text: str) -> None:
    """Progress, apart from results."""
    click.echo(text, err=True)


def commit() -> str:
    """The commit of the working tree, with a + where it was changed; `unknown` outside of a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", *(f":/{folder}" for folder in CODE), ":!results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


if __name__ == "__main__":
    main()
