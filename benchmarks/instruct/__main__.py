"""Experiments on SmolLM2-135M-Instruct, which `make instruct` prepares. Every command goes on where it was interrupted.

python -m benchmarks.instruct headroom so       # what constants and hand rules reach, before anything is trained
python -m benchmarks.instruct train so          # heads of three training seeds, and heads that see statistics alone
python -m benchmarks.instruct compare so        # heads, their controls and all rivals on held-out prompts
python -m benchmarks.instruct rollouts          # what rollouts cost where copies share the reading of their prompt
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import latentknobs as lk
from benchmarks.instruct.arena import Arena, load
from benchmarks.instruct.tasks import TASKS
from benchmarks.timing import interleaved
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.evaluation.statistics import estimate
from latentknobs.heads.segmenters import Every
from latentknobs.policies import Policy, UniformPolicy
from latentknobs.policies.controls import MeanShift, Shuffle

COLD_HOT = "temperature:0,0.4,0.8,1,1.2,1.5"  # two cold options, and hotter than any constant that is worth it
STATISTICS = ("entropy", "max_prob", "top5_mass", "log_collision", "margin")
VARIANTS: dict[str, dict[str, Any]] = {
    "lpo": {"knobs": COLD_HOT},
    "narrow": {"knobs": "temperature:0,0.2,0.4,0.6,0.8,1"},
    "soft": {"knobs": COLD_HOT, "beta": 0.3},
    "reinforce": {"knobs": COLD_HOT, "learner": "reinforce", "steps": 8},
    "statistics": {"knobs": COLD_HOT, "features": STATISTICS},
}
CONSTANTS = [f"constant:temperature={t}" for t in (0, 0.4, 0.6, 0.8, 1.0)]
STARTS = {"so": ".!?", "then": ".!?", "ideas": ".", "names": "."}  # where the hand rule acts: sentences, or items of a list
RULES = {
    ".!?": [(0, 0.6, 0), (0, 0.8, 0), (0, 1, 0), (0, 1.2, 0.1), (0.4, 1, 0)],
    ".": [(0.8, 0, 0), (1, 0, 0), (1.5, 0, 0.1), (1, 0.4, 0)],
}


def rules(task: str) -> list[str]:
    """Hand rules: one temperature where an item or a sentence begins, another elsewhere, with min-p too."""
    after = STARTS[task]
    made = [
        f"sentence_start:cold={at},hot={inside}"
        + (f",min_p={low}" if low else "")
        + ("" if after == ".!?" else f",after={after}")
        for at, inside, low in RULES[after]
    ]
    return [*made, "edt:base=1,theta=1", "constant:temperature=1.2,min_p=0.1"]


@click.group()
@click.option("--model", default=f"{os.environ.get('LATENTKNOBS_DATA', 'data')}/SmolLM2-135M-Instruct", show_default=True)
@click.option("--out", default="runs/instruct", show_default=True)
@click.pass_context
def main(context: click.Context, model: str, out: str) -> None:
    """What adapting is worth on a small instruct model."""
    context.obj = (model, Path(out))


def arena_of(context: click.Context, task: str) -> Arena:
    """The arena of a task."""
    model, out = context.obj
    return Arena(*load(model), TASKS[task], out / task)


TASK = click.argument("task", type=click.Choice(sorted(TASKS)))


@main.command()
@TASK
@click.option("--prompts", default=32, show_default=True)
@click.option("--copies", default=2, show_default=True)
@click.pass_context
def headroom(context: click.Context, task: str, prompts: int, copies: int) -> None:
    """Constants and hand rules on training prompts, with standard errors over prompts, and a sample of each."""
    arena = arena_of(context, task)
    for name in [*CONSTANTS, *rules(task)]:
        reward_PC, texts = arena.score(name, held_out=False, count=prompts, copies=copies)
        error = reward_PC.mean(1).std() / len(reward_PC) ** 0.5
        print(f"{name:50} {reward_PC.mean():.3f} +- {error:.3f}  {texts[0][:90]!r}", flush=True)


@main.command()
@TASK
@click.option("--variant", type=click.Choice(sorted(VARIANTS)), multiple=True, default=("lpo", "statistics"), show_default=True)
@click.option("--seed", multiple=True, type=int, default=(0, 1, 2), show_default=True)
@click.option("--prompts", default=64, show_default=True)
@click.pass_context
def train(context: click.Context, task: str, variant: tuple[str, ...], seed: tuple[int, ...], prompts: int) -> None:
    """Token-level heads, one for each variant and training seed. Variants with one grid learn from the same rollouts."""
    model, out = context.obj
    loaded, tokenizer = load(model)
    for number in seed:
        for name in variant:
            settings = VARIANTS[name]
            adapter = out / task / "adapters" / f"{name}-{number}"
            if adapter.exists():
                continue
            shared = "lpo" if settings["knobs"] == COLD_HOT and "learner" not in settings else name
            run = lk.train(
                model=loaded, tokenizer=tokenizer, prompts=TASKS[task].rows(False, prompts), reward=TASKS[task].reward,
                level="token", rollouts=8, max_new_tokens=TASKS[task].max_new_tokens, batch_size=64, shard_size=64, eval_size=0,
                seed=number, feature_dtype="bfloat16", output_dir=str(out / task / f"{shared}-{number}"), **settings,
            )  # fmt: skip
            run.adapter.save_pretrained(adapter)


def contestants(arena: Arena, task: str, tune: int) -> Iterator[tuple[str, str, Callable[[], Policy | str]]]:
    """(group, name, policy) of everything that is compared; policies of one group are training seeds."""
    folders = sorted((arena.folder / "adapters").glob("*-*"))
    for folder in folders:
        variant, _, number = folder.name.rpartition("-")
        policy = lk.KnobAdapter.from_pretrained(folder).policy()
        yield variant, number, lambda policy=policy: policy
        if variant == "lpo":
            choices = arena.choices(policy, tune)
            yield "mean shift", number, lambda p=policy, c=choices: MeanShift(p.space, c)
            yield "shuffle", number, lambda p=policy, c=choices: Shuffle(p.space, p.segmenter, c)
            yield "shuffle in bins", number, lambda p=policy, c=choices: Shuffle(p.space, p.segmenter, c, binned=True)
    for kind, names in (("constant", CONSTANTS), ("rule", rules(task))):
        for name in names:
            yield kind, name, lambda name=name: name


@main.command()
@TASK
@click.option("--prompts", default=32, show_default=True, help="held out")
@click.option("--copies", default=2, show_default=True)
@click.option("--tune", default=32, show_default=True, help="training prompts that choose the best constant and the best rule")
@click.pass_context
def compare(context: click.Context, task: str, prompts: int, copies: int, tune: int) -> None:
    """Heads, controls and rivals; differences are paired by prompt, with 95 % intervals over prompts and training seeds."""
    arena = arena_of(context, task)
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    tuned: dict[str, dict[str, float]] = {"constant": {}, "rule": {}}
    for group, name, policy in contestants(arena, task, tune):
        if group in tuned:
            tuned[group][name] = float(arena.score(policy(), held_out=False, count=tune, copies=copies)[0].mean())
            continue
        reward_PC, texts = arena.score(policy(), held_out=True, count=prompts, copies=copies)
        found.setdefault(group, {})[name] = reward_PC
        print(f"{group} {name}: {reward_PC.mean():.3f}  {texts[0][:100]!r}", flush=True)
    for group, scores in tuned.items():
        best = max(scores, key=lambda name: scores[name])
        found[f"best {group}: {best}"] = {"": arena.score(best, held_out=True, count=prompts, copies=copies)[0]}
    head_SP = np.stack([reward_PC.mean(1) for reward_PC in found.pop("lpo").values()])
    rows = [{"policy": "lpo", "reward": float(head_SP.mean()), "seeds": head_SP.mean(1).tolist()}]
    for group, by_seed in found.items():
        other_SP = np.stack([reward_PC.mean(1) for reward_PC in by_seed.values()])
        mine_SP = head_SP[: len(other_SP)] if len(other_SP) > 1 else head_SP
        rows.append({"policy": group, "reward": float(other_SP.mean()), "seeds": other_SP.mean(1).tolist(),
                     "lpo ahead by": str(estimate(mine_SP - other_SP, ends=(-1, 1)))})  # fmt: skip
    (arena.folder / "comparison.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for row in rows:
        print(f"{row['policy']:60} {row['reward']:.3f}  {row.get('lpo ahead by', '')}")


@main.command()
@click.option("--copies", default=8, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.pass_context
def rollouts(context: click.Context, copies: int, rounds: int) -> None:
    """Processor time of 64 responses as long as their prompts, over that of transformers' own sampling of the same batch."""
    model, tokenizer = load(context.obj[0])
    prompts = make_prompts(TASKS["so"].rows(False, 64 // copies), tokenizer)
    tokens = max(len(prompt.ids) for prompt in prompts)
    policy = UniformPolicy(lk.KnobSpace.of("temperature:0.4,0.8,1"), Every(1))
    model.generation_config.eos_token_id = None  # responses of one length
    ids = [list(prompt.ids) for prompt in prompts for _ in range(copies)]
    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")

    def plain() -> None:
        model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=tokens, pad_token_id=0)

    def ours() -> None:
        roll_out(model, tokenizer, prompts, policy, copies=copies, max_new_tokens=tokens, batch_size=64, seed=0)

    seconds = interleaved({"ours": ours, "plain": plain}, rounds=rounds, clock=time.process_time)
    print(f"{tokens} tokens, {copies} copies: {seconds['ours']:.2f} s against {seconds['plain']:.2f} s, "
          f"{seconds['ours'] / seconds['plain']:.2f} of it")  # fmt: skip


if __name__ == "__main__":
    main()
