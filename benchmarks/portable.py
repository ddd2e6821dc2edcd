"""Does a head on statistics alone help another model than its own? Rare but correctly spelled words, one choice per token.

    python -m benchmarks.portable               # testbed and stories260K, both directions, three training seeds
    python -m benchmarks.portable --seed 0      # a part; parts may run side by side, the last call sums up
    python -m benchmarks.portable --world testbed --world smollm2 --device cuda

On each model every head of another one answers the same held-out prompts as the head that was trained there, its own mean and
its choices in random places, every constant and the tuned one.
"""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import click
import torch

import latentknobs as lk
from benchmarks.instruct.arena import load as load_instruct
from benchmarks.stories260k import creative_reward, data_folder, load, openings, stories
from latentknobs import testbed
from latentknobs.evaluation.report import CONTROLS, HEAD, Report
from latentknobs.evaluation.statistics import estimate
from latentknobs.heads.features import PORTABLE

HERE = "head trained here"
SIZES = {"train_prompts": 192, "max_new_tokens": 64, "batch_size": 256}
SETS = 2  # of responses to each prompt, also to tuning prompts, of which there are four fifths as many


def world(name: str, device: str) -> dict[str, Any]:
    """Model, tokenizer, prompts that train and tune, and prompts that judge."""
    folder = data_folder()
    if name == "testbed":
        model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
        train, held_out = (testbed.prompts("stories", split, 512) for split in ("train", "eval"))
    else:
        model, tokenizer = load(folder) if name == "stories260k" else load_instruct(str(folder / "SmolLM2-135M-Instruct"))
        train, held_out = openings(stories(folder), tokenizer)
    return {"model": model.to(device), "tokenizer": tokenizer, "tune_prompts": train, "prompts": held_out}


def fit(name: str, seed: int, folder: Path, device: str) -> Path:
    """The adapter of a model and a training seed."""
    path = folder / "adapters" / f"{name}-{seed}"
    if not path.exists():
        here = world(name, device)
        run = lk.train(
            knobs=["temperature:0,0.4,0.8,1,1.2"], level="token", features=PORTABLE, model=here["model"],
            tokenizer=here["tokenizer"], prompts=here["tune_prompts"], eval_prompts=here["prompts"], eval_size=0, seed=seed,
            reward=creative_reward(data_folder()), output_dir=str(folder / f"{name}-{seed}"), **SIZES,
        )  # fmt: skip
        run.adapter.save_pretrained(path)
    return path


def judged(source: str, target: str, seed: int, folder: Path, device: str, prompts: int) -> Report:
    """The head of one model on another, beside the head that was trained there; kept as a file."""
    path = folder / f"{source}-{target}-{seed}-{prompts}.json"
    if not path.exists():
        ours, theirs = (fit(name, seed, folder, device) for name in (source, target))
        report = lk.evaluate(
            ours, extra={HERE: theirs}, reward=creative_reward(data_folder()), eval_size=prompts, tune_size=prompts * 4 // 5,
            seeds=SETS, **world(target, device), **SIZES,
        )  # fmt: skip
        path.write_text(json.dumps(report.to_dict()), encoding="utf-8")
    return Report.from_dict(json.loads(path.read_text(encoding="utf-8")))


@click.command()
@click.option("--world", "worlds", multiple=True, default=("testbed", "stories260k"), show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--prompts", default=160, show_default=True, help="held out; on SmolLM2 without a GPU 64 take a quarter of an hour")
@click.option("--device", default="cpu", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/portable"), show_default=True)
def main(worlds: tuple[str, ...], seeds: tuple[int, ...], prompts: int, device: str, folder: Path) -> None:
    """Trains and judges what is not there yet, and prints a table for each direction."""
    torch.set_num_threads(1)
    for source, target in permutations(worlds, 2):
        report = Report.join([judged(source, target, seed, folder, device, prompts) for seed in seeds])
        print(f"\n**{source} to {target}** ({report.tuned})\n\n| policy | reward | transferred head over it | p, corrected |")
        print("|---|---|---|---|")
        for row in report.table():
            if row.policy in (HEAD, report.tuned, HERE, *CONTROLS):
                gain = "| |" if row.policy == HEAD else f"| {row.gain} | {row.p:.3f} |"
                print(f"| {row.policy} | {row.reward} {gain}")
        own = report.rewards[HERE] - report.rewards[report.tuned]
        print(f"\nThe head trained there over the tuned constant: {estimate(own.reshape(len(seeds), -1, own.shape[1]).mean(1))}")


if __name__ == "__main__":
    main()
