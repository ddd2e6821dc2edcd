"""Heads of several runs, each sampled by several engines, on the testbed's held-out prompts and in pairs.

    python -m benchmarks.across_engines runs/vllm runs/transformers --engine vllm:http://localhost:8000 --engine transformers

Means of the reward, and the difference of every two cells in a row or a column with a 95 % bootstrap interval over prompts.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from einops import reduce

from latentknobs import KnobAdapter, testbed
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.data.scores import score_rollouts
from latentknobs.rewards import resolve_rewards

COPIES, TOKENS, SEED = 2, 48, 21


def interval(difference_P: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> str:
    """The mean and its interval."""
    draws = np.random.default_rng(0).integers(0, len(difference_P), (4000, len(difference_P)))
    low, high = np.quantile(difference_P[draws].mean(-1), [0.025, 0.975])
    return f"{difference_P.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--engine", dest="engines", action="append", required=True)
    parser.add_argument("--prompts", type=int, default=288)
    chosen = parser.parse_args()
    model, tokenizer, reward = testbed.load_model(), testbed.load_tokenizer(), resolve_rewards("testbed")
    prompts = make_prompts(testbed.prompts("mixture", "eval", chosen.prompts, 0), tokenizer)
    reward_P = {}
    for run in chosen.runs:
        policy = KnobAdapter.from_pretrained(run / "adapter").policy()
        for engine in chosen.engines:
            found = roll_out(model, tokenizer, prompts, policy, copies=COPIES, max_new_tokens=TOKENS, batch_size=len(prompts),
                             seed=SEED, engine=engine)  # fmt: skip
            values = np.array([score.value for score in score_rollouts(reward, prompts, found, whole=False)], dtype=float)
            reward_P[run.name, engine] = reduce(values, "(P C) -> P", "mean", C=COPIES)
            print(f"head of {run.name}, sampled by {engine}: {reward_P[run.name, engine].mean():.3f}")
    for one, other in combinations(reward_P, 2):
        if one[0] == other[0] or one[1] == other[1]:
            print(f"{one} minus {other}: {interval(reward_P[one] - reward_P[other])}")


if __name__ == "__main__":
    main()
