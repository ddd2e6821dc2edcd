"""Heads of several runs, each sampled by several engines, on the testbed's held-out prompts and in pairs.

    python -m benchmarks.across_engines vllm=runs/v0,runs/v1,runs/v2 transformers=runs/t0,runs/t1,runs/t2 \\
        --engine vllm --engine transformers

A group holds the runs of several training seeds, in the same order in each group. Means, and the difference of every
two cells in a row or a column with a 95 % interval over prompts and training seeds.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from einops import reduce

from latentknobs import KnobAdapter, testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.evaluation.statistics import Floats, estimate
from latentknobs.rewards import resolve_rewards

COPIES, TOKENS, SEED = 2, 48, 21


def shown(reward_RP: Floats) -> str:
    """The mean and its interval."""
    found = estimate(reward_RP)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="GROUP=RUN,RUN,...")
    parser.add_argument("--engine", dest="engines", action="append", required=True)
    parser.add_argument("--prompts", type=int, default=288)
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    model, tokenizer = testbed.load_model().to(getattr(torch, chosen.dtype)), testbed.load_tokenizer()
    reward, reward_RP = resolve_rewards("testbed"), dict[tuple[str, str], Floats]()
    prompts = make_prompts(testbed.prompts("mixture", "eval", chosen.prompts, 0), tokenizer)
    for group, _, runs in (text.partition("=") for text in chosen.groups):
        policies = [KnobAdapter.from_pretrained(Path(run) / "adapter").policy() for run in runs.split(",")]
        for engine in chosen.engines:
            rows = []
            for policy in policies:
                found = roll_out(model, tokenizer, prompts, policy, copies=COPIES, max_new_tokens=TOKENS, batch_size=len(prompts),
                                 seed=SEED, engine=engine)  # fmt: skip
                values = np.array([score.value for score in score_rollouts(reward, prompts, found)], dtype=float)
                rows.append(reduce(values, "(P C) -> P", "mean", C=COPIES))
            reward_RP[group, engine] = np.stack(rows)
            print(f"heads of {group}, sampled by {engine}: {reward_RP[group, engine].mean():.3f}", flush=True)
    for one, other in combinations(reward_RP, 2):
        if one[0] == other[0] or one[1] == other[1]:
            print(f"{one} minus {other}: {shown(reward_RP[one] - reward_RP[other])}")


if __name__ == "__main__":
    main()
