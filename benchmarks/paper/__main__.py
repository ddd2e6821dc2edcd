"""The paper's experiments, one command each.

python -m benchmarks.paper run repetition --size reduced
python -m benchmarks.paper run ultra --model path-or-hub-id --prompts train.jsonl
python -m benchmarks.paper run ultra --piece 0      # one training seed of three; pieces may run side by side
python -m benchmarks.paper all --size reduced --seeds 1     # what `make paper` does
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
from benchmarks.paper.experiment import RIVALS, correct, play_part, put_together, summary
from benchmarks.paper.recipe import Part, Recipe, Size, forecast, names, read_recipe
from benchmarks.paper.worlds import MissingData

RESULTS = Path(__file__).parent / "results"
CODE = ("latentknobs", "plugins", "benchmarks/paper")  # what decides the figures


@click.group()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """The experiments of arXiv 2411.09661 and beyond."""
    torch.set_num_threads(threads)


seeds_option = click.option("--seeds", default=3, show_default=True, help="Training seeds; of one, a table says so.")
size_option = click.option("--size", type=click.Choice(get_args(Size)), default="reduced", show_default=True)
out_option = click.option("--out", type=click.Path(path_type=Path), default=Path("runs/paper"), show_default=True)


@main.command()
@click.argument("name")
@click.option("--part", "chosen", multiple=True, help="Only this part; may be given several times.")
@click.option("--model", default=None, help="Folder or hub id, in place of the recipe's.")
@click.option("--prompts", default=None, help="A JSONL file or a source, in place of the recipe's.")
@click.option("--piece", default=None, help="Only this training seed (0, 1, ...), or `rivals`; pieces may run side by side.")
@seeds_option
@size_option
@out_option
def run(
    name: str, chosen: tuple[str, ...], model: str | None, prompts: str | None, piece: str | None, seeds: int, size: Size,
    out: Path,
) -> None:  # fmt: skip
    """Runs one recipe, or goes on with it."""
    show(run_recipe(name, size, out, seeds, chosen, piece, model, prompts))


@main.command(name="all")
@seeds_option
@size_option
@out_option
@click.option("--jobs", default=2, show_default=True, help="Recipes at a time, one thread each.")
def every(seeds: int, size: Size, out: Path, jobs: int) -> None:
    """Runs every recipe and says which conclusions hold."""
    report(f"{forecast(names(), size, seeds)} {jobs} recipes at a time.")
    started = time.monotonic()

    def one(name: str) -> int:
        command = [sys.executable, "-m", "benchmarks.paper", "--threads", "1", "run", name]
        command += ["--size", size, "--out", str(out), "--seeds", str(seeds)]
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
    name: str, size: Size, out: Path, seeds: int = 3, chosen: tuple[str, ...] = (), piece: str | None = None,
    model: str | None = None, prompts: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The summary of a recipe, which is also written; without the parts some piece of which is missing.

    Args:
        piece: only this training seed, or `rivals`; pieces and parts may run side by side, each keeps its responses for itself.
    """
    if name not in names():
        sys.exit(f"There is no recipe {name!r}. Recipes: {', '.join(names())}.")
    recipe = read_recipe(name)
    if unknown := set(chosen) - set(recipe.parts):
        sys.exit(f"{name!r} has no part {sorted(unknown)[0]!r}. Parts: {', '.join(recipe.parts)}.")
    folder, pieces = out / f"{name}-{size}", [RIVALS, *map(str, range(seeds))]
    parts = {label: part for label, part in recipe.parts.items() if size in part.sizes}
    for label, part in parts.items():
        own_model, _, own_source = part.world.rpartition(":")
        parts[label] = part.model_copy(update={"world": f"{model or own_model}:{prompts or own_source}"})
    report(f"{name}, {size}: {forecast([name], size, seeds, piece)}{' The parts together, that is.' if chosen else ''}")
    for one in [piece] if piece else pieces:
        with unpacked(work := folder / "-".join([one, *map(slug, chosen)])):
            for label in chosen or parts:
                if (path := folder / slug(label) / f"{one}.json").exists():
                    continue
                report(f"{name}, {label}, {size}, {one}")
                try:
                    found = play_part(parts[label], parts[label].sizes[size], work, one, report)
                except MissingData as reason:
                    report(f"{name}, {label} is skipped: {reason}")
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"size": size, "commit": commit(), "date": str(datetime.date.today())} | found)
                path.with_suffix(".partial").write_text(text + "\n", encoding="utf-8")
                path.with_suffix(".partial").replace(path)
    return summarised(recipe, name, size, folder, parts, pieces)


def summarised(recipe: Recipe, name: str, size: Size, folder: Path, parts: dict[str, Part], pieces: list[str]) -> dict[str, Any]:
    """What the pieces that are there show together, with one correction for all of it; also written to `summary.json`."""
    known: dict[str, list[dict[str, Any]]] = {}
    for label in parts:
        paths = [folder / slug(label) / f"{piece}.json" for piece in pieces]
        if all(path.exists() for path in paths):
            known[label] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    fields = {label: put_together(rival, seeds) for label, (rival, *seeds) in known.items()}
    correct((parts[label], parts[label].sizes[size], field) for label, field in fields.items())
    about = {
        label: {key: rival[key] for key in ("size", "commit", "date")}
        | {"command": f"python -m benchmarks.paper run {name} --size {size} --seeds {len(seeds)} --part '{label}'"}
        | summary(parts[label], parts[label].sizes[size], fields[label], rival, seeds)
        for label, (rival, *seeds) in known.items()
    }
    out = {"recipe": name, "size": size, "title": recipe.title, "parts": about}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return out


def slug(label: str) -> str:
    """The name of a part in paths."""
    return "".join(c if c.isalnum() else "-" for c in label)


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
