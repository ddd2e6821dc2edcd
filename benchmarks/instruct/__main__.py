"""Experiments on SmolLM2-135M-Instruct, which `make instruct` prepares. Every command goes on where it was interrupted.

python -m benchmarks.instruct headroom so       # what constants and hand rules reach, before anything is trained
python -m benchmarks.instruct train so          # heads of three training seeds, and heads that see statistics alone
python -m benchmarks.instruct compare so        # heads, their controls and all rivals on held-out prompts
python -m benchmarks.instruct merge so --variant reinforce-large  # the heads of all seeds as one, for `compare --head merged`
python -m benchmarks.instruct transfer so then  # the heads of one task on another, beside that task's own
python -m benchmarks.instruct votes sums        # the accuracy of a majority
python -m benchmarks.instruct rollouts          # what rollouts cost where copies share the reading of their prompt
"""

import os
from dataclasses import replace
from pathlib import Path

import click

import latentknobs as lk
from benchmarks.instruct import comparison
from benchmarks.instruct.arena import Arena, load
from benchmarks.instruct.heads import trained
from benchmarks.instruct.merged import merged
from benchmarks.instruct.rivals import CONSTANTS, LAST, VARIANTS, rules
from benchmarks.instruct.tasks import TASKS


@click.group()
@click.option("--model", default=f"{os.environ.get('LATENTKNOBS_DATA', 'data')}/SmolLM2-135M-Instruct", show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="float32 where the processor has neither AMX nor AVX512-bf16")
@click.option("--out", default="runs/instruct", show_default=True)
@click.option("--batch", default=64, show_default=True, help="responses answered together; an interruption costs one batch")
@click.pass_context
def main(context: click.Context, model: str, dtype: str, out: str, batch: int) -> None:
    """What adapting is worth on a small instruct model."""
    context.obj = ((model, dtype), Path(out), batch)


def arena_of(context: click.Context, task: str) -> Arena:
    """The arena of a task."""
    model, out, batch = context.obj
    return Arena(*load(*model), TASKS[task], out / task, batch)


TASK = click.argument("task", type=click.Choice(sorted(TASKS)))
PROMPTS = click.option("--prompts", default=128, show_default=True, help="held out")
COPIES = click.option("--copies", default=4, show_default=True, help="responses to each held-out prompt")
TUNE = click.option(
    "--tune", default=64, show_default=True, help="training prompts (8 responses each) that choose among rivals; 16 of them first"
)
HEADS = click.Choice(sorted([*VARIANTS, "merged"]))
HEAD = click.option("--head", default="lpo", type=HEADS, show_default=True, help="the heads in question")


@main.command()
@TASK
@click.option("--prompts", default=64, show_default=True)
@click.option("--copies", default=8, show_default=True)
@click.pass_context
def headroom(context: click.Context, task: str, prompts: int, copies: int) -> None:
    """Constants and hand rules on training prompts, with standard errors over prompts, and a sample of each."""
    arena = arena_of(context, task)
    for name in [*CONSTANTS, *rules(arena.task.kind), *LAST]:
        reward_PC, texts = arena.score(name, held_out=False, count=prompts, copies=copies)
        error = reward_PC.mean(1).std() / len(reward_PC) ** 0.5
        print(f"{name!r:60} {reward_PC.mean():.3f} +- {error:.3f}  {texts[0][:90]!r}", flush=True)


@main.command()
@TASK
@click.option("--variant", type=click.Choice(sorted(VARIANTS)), multiple=True, default=("lpo", "statistics"), show_default=True)
@click.option("--seed", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--train-prompts", default=64, show_default=True)
@PROMPTS
@COPIES
@click.pass_context
def train(
    context: click.Context,
    task: str,
    variant: tuple[str, ...],
    seed: tuple[int, ...],
    train_prompts: int,
    prompts: int,
    copies: int,
) -> None:
    """Heads, one for each variant and training seed; each answers the held-out prompts at once, for `compare`."""
    arena = arena_of(context, task)
    for number in seed:
        for name in variant:
            adapter = arena.folder / "adapters" / f"{name}-{number}"
            if not adapter.exists():
                trained(arena, f"{name}-{number}", number, {"train_prompts": train_prompts} | VARIANTS[name]).save_pretrained(
                    adapter
                )
            policy = lk.KnobAdapter.from_pretrained(adapter).policy()
            reward_PC, _ = arena.score(policy, held_out=True, count=prompts, copies=copies)
            print(f"{task} {name} {number}: {reward_PC.mean():.3f}", flush=True)


@main.command()
@TASK
@click.option("--variant", type=click.Choice(sorted(VARIANTS)), multiple=True, required=True, help="whose heads, of all seeds")
@click.pass_context
def merge(context: click.Context, task: str, variant: tuple[str, ...]) -> None:
    """One head, `merged`, whose log-probabilities are the mean of those of several."""
    folder = context.obj[1] / task / "adapters"
    paths = [path for name in variant for path in sorted(folder.glob(f"{name}-[0-9]"))]
    if not paths:
        raise click.UsageError(f"There are no heads of {', '.join(variant)} in {folder}. Train them first.")
    adapters = [lk.KnobAdapter.from_pretrained(path) for path in paths]
    first = adapters[0]
    replace(first, head=merged([one.head for one in adapters], first.space), rival=None).save_pretrained(folder / "merged-0")
    print(f"{folder / 'merged-0'}: {', '.join(path.name for path in paths)}")


@main.command()
@TASK
@HEAD
@click.option("--only", multiple=True, help="other variants in the table; by default all that are trained")
@PROMPTS
@COPIES
@TUNE
@click.option("--constants", is_flag=True, help="also every constant of the heads' own grid")
@click.option("--few", nargs=2, type=int, help="prompts and copies of controls and constants, where they answer fewer")
@click.option("--sets", default=1, show_default=True, help="sets of responses of all but controls, of other random numbers")
@click.option("--statistics/--no-statistics", default=True, show_default=True, help="also the rival on statistics")
@click.pass_context
def compare(
    context: click.Context,
    task: str,
    head: str,
    only: tuple[str, ...],
    prompts: int,
    copies: int,
    tune: int,
    constants: bool,
    few: tuple[int, int] | None,
    sets: int,
    statistics: bool,
) -> None:
    """Heads, controls and rivals; differences are paired by prompt, with 95 % intervals over prompts and training seeds."""
    sizes = comparison.Sizes(prompts, copies, tune, few, sets)
    comparison.compare(arena_of(context, task), head, only, sizes, constants, statistics)


@main.command()
@click.argument("source", type=click.Choice(sorted(TASKS)))
@TASK
@HEAD
@click.option("--adapters", type=click.Path(exists=True), help="their folder, where they come from another model")
@PROMPTS
@COPIES
@TUNE
@click.pass_context
def transfer(
    context: click.Context, source: str, task: str, head: str, adapters: str | None, prompts: int, copies: int, tune: int
) -> None:
    """Heads that were trained on one task (or another model) on another, against that one's tuned constant and own heads."""
    folder = Path(adapters) if adapters else context.obj[1] / source / "adapters"
    comparison.transfer(arena_of(context, task), folder, source, head, comparison.Sizes(prompts, copies, tune))


@main.command()
@TASK
@HEAD
@click.option("--prompts", default=64, show_default=True, help="held out")
@click.option("--copies", default=16, show_default=True)
@click.option("--count", "counts", multiple=True, type=int, default=(1, 4, 8), show_default=True)
@click.pass_context
def votes(context: click.Context, task: str, head: str, prompts: int, copies: int, counts: tuple[int, ...]) -> None:
    """The accuracy of a majority of so many responses, for heads and for every constant."""
    comparison.votes(arena_of(context, task), head, prompts, copies, counts)


@main.command()
@click.option("--copies", default=8, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.pass_context
def rollouts(context: click.Context, copies: int, rounds: int) -> None:
    """Time of 64 responses as long as their prompts, over that of transformers' own sampling of the same batch."""
    from benchmarks.instruct.speed import measure

    measure(*load(*context.obj[0]), copies, rounds)


if __name__ == "__main__":
    main()
