"""Rollouts whose finished rows leave the batch, against one call of `generate`: `python -m benchmarks.rollouts [--json DIR]`.

Processor seconds of whole rollouts, prompts in and texts out, in batches planned by the length of the prompts; both give the same tokens.
The testbed on stories and math (64 tokens), and stories260K, where LATENTKNOBS_DATA has it, on openings of TinyStories (200 tokens).
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.stories260k import load, openings, stories
from benchmarks.timing import Row, interleaved, report
from benchmarks.training import DATA
from latentknobs import KnobSpace, testbed
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, roll_out
from latentknobs.policies import UniformPolicy
from latentknobs.segments import parse_level

World = tuple[Any, Any, list[Prompt], int]


def worlds() -> dict[str, World]:
    """Model, tokenizer, 512 prompts, most new tokens."""
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    rows = [row for task in ("stories", "math") for row in testbed.prompts(task, "train", 256)]
    found = {"testbed": (model, tokenizer, make_prompts(rows, tokenizer), testbed.MAX_NEW_TOKENS)}
    if (DATA / "stories260K").is_dir():
        model, tokenizer = load(DATA)
        told, _ = openings(stories(DATA), tokenizer)
        found["stories260K"] = (model.eval(), tokenizer, make_prompts(told[:512], tokenizer), 200)
    return found


def against_one_call(name: str, world: World, level: str, batch_size: int, rounds: int) -> Row:
    """Both ways on the same prompts with the same seed."""
    model, tokenizer, prompts, longest = world
    leaving = UniformPolicy(KnobSpace.of("temperature"), parse_level(level, tokenizer))
    together = UniformPolicy(leaving.space, leaving.segmenter)
    together.keeps_rows = True
    made: dict[str, Sequence[Rollout]] = {}

    def run(name: str, policy: UniformPolicy) -> None:
        made[name] = roll_out(model, tokenizer, prompts, policy, max_new_tokens=longest, batch_size=batch_size, seed=0)

    contestants = {"together": lambda: run("together", together), "leaving": lambda: run("leaving", leaving)}
    seconds = interleaved(contestants, rounds=rounds, clock=time.process_time)
    return {
        "model": name, "level": level, "batch": batch_size, "filled": sum(len(r.ids) for r in made["leaving"]) / len(prompts) / longest,
        "one call, s": seconds["together"], "leaving, s": seconds["leaving"], "ratio": seconds["leaving"] / seconds["together"],
        "same": str(made["together"] == made["leaving"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="folder for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        against_one_call(name, world, level, batch_size, rounds=3)
        for name, world in worlds().items()
        for level, batch_size in (("token", 512), ("sequence", 512), ("token", 64), ("token", 8))
    ]
    report("Finished rows leave the batch", rows, args.json and f"{args.json}/rollouts_leaving.json")


if __name__ == "__main__":
    main()
