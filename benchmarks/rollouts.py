"""Rollouts whose finished rows leave the batch, against one call of `generate`: `python -m benchmarks.rollouts [--json DIR]`.

Processor time of whole rollouts, prompts in and texts out, in batches planned by the length of the prompts. Both ways give the
same tokens. Plain is transformers' own sampling at temperature 1 of the same batches, whose responses have other lengths, so
that times are per real token. The testbed on stories and math, and stories260K, where LATENTKNOBS_DATA has it, on openings of
TinyStories, few of which it ends within 200 tokens.
"""

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.stories260k import load, openings, stories
from benchmarks.timing import Row, interleaved, report
from benchmarks.training import DATA
from latentknobs import KnobSpace, testbed
from latentknobs.data.prompts import Prompt, make_prompts
from latentknobs.data.rollouts import Rollout, plan_batches, roll_out
from latentknobs.engines.transformers import leaving
from latentknobs.engines.transformers.record import split_sequences
from latentknobs.heads.segmenters import parse_level
from latentknobs.policies import UniformPolicy

World = tuple[Any, Any, list[Prompt], int]


def worlds() -> dict[str, World]:
    """Model, tokenizer, prompts, most new tokens."""
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    rows = [row for task in ("stories", "math") for row in testbed.prompts(task, "train", 256)]
    found = {"testbed": (model, tokenizer, make_prompts(rows, tokenizer), testbed.MAX_NEW_TOKENS)}
    if (DATA / "stories260K").is_dir():
        model, tokenizer = load(DATA)
        beginnings, _ = openings(stories(DATA), tokenizer)
        found["stories260K"] = (model.eval(), tokenizer, make_prompts(beginnings[:64], tokenizer), 200)
    return found


def sample_plainly(world: World, batch_size: int) -> list[list[int]]:
    """Responses of transformers' own sampling, in no particular order."""
    model, tokenizer, prompts, longest = world
    made: list[list[int]] = []
    for rows in plan_batches(prompts, 1, batch_size):
        inputs = tokenizer.pad({"input_ids": [list(prompts[p].ids) for p in rows]}, padding_side="left", return_tensors="pt")
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": longest, "pad_token_id": tokenizer.pad_token_id}
        ids_BL = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **settings)
        _, responses = split_sequences(model, ids_BL, inputs["input_ids"].shape[1])
        tokenizer.batch_decode(responses, skip_special_tokens=True)
        made += responses
    return made


def against_one_call(name: str, world: World, level: str, batch_size: int, rounds: int = 3) -> Row:
    """Both ways on the same prompts with the same seed, and plain sampling."""
    model, tokenizer, prompts, longest = world
    policy, share = UniformPolicy(KnobSpace.of("temperature"), parse_level(level, tokenizer)), leaving.SHARE
    made: dict[str, Sequence[Rollout]] = {}
    lengths: list[int] = []  # of plain sampling's responses, which have no seed

    def run(name: str, leave_at: float) -> None:
        leaving.SHARE = leave_at
        made[name] = roll_out(model, tokenizer, prompts, policy, max_new_tokens=longest, batch_size=batch_size, seed=0)

    def plain() -> None:
        lengths.extend(map(len, sample_plainly(world, batch_size)))

    contestants = {"plain": plain, "together": lambda: run("together", math.inf), "leaving": lambda: run("leaving", share)}
    seconds = interleaved(contestants, rounds=rounds, clock=time.process_time)
    tokens, plain_tokens = sum(len(r.ids) for r in made["leaving"]), sum(lengths) / (rounds + 1)
    return {
        "model": name, "level": level, "batch": batch_size, "filled": tokens / len(prompts) / longest,
        "one call, s": seconds["together"], "leaving, s": seconds["leaving"], "ratio": seconds["leaving"] / seconds["together"],
        "same": str(made["together"] == made["leaving"]), "plain us/token": seconds["plain"] / plain_tokens * 1e6,
        "ours us/token": seconds["leaving"] / tokens * 1e6,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="folder for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = {"testbed": [("token", 512), ("sequence", 512), ("token", 64)], "stories260K": [("token", 64)]}
    rows = [against_one_call(name, world, *one) for name, world in worlds().items() for one in cases[name]]
    report("Finished rows leave the batch", rows, args.json and f"{args.json}/rollouts_leaving.json")


if __name__ == "__main__":
    main()
