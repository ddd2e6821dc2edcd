"""The per-row sampler against transformers' warpers and `torch.multinomial`: `python -m benchmarks.sampling [--json DIR]`.

One thread. Each of our rows has knob values of its own, temperature 0 included; transformers gives all rows the same ones.
Without top-k, transformers runs its other three warpers. Rows with top-k have 20 to 200, top-p 0.9, min-p 0.05.
"""

import argparse

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from benchmarks.timing import Row, interleaved, report, synthetic_logits
from latentknobs import KnobSpace
from latentknobs.decoding.sampler import sample_values

SPACE = KnobSpace.of("temperature", "top_k", "top_p", "min_p")
GOALS = {
    (128_256, "with top-k"): {1: 9, 8: 18, 64: 22},
    (128_256, "no top-k"): {1: 6, 8: 9, 64: 9},
    (32_000, "with top-k"): {1: 6, 8: 7, 64: 12},
}
# Per-row temperature, top-k, top-p, min-p: rows take turns.
KINDS: dict[str, list[list[float]]] = {
    "with top-k": [[0.7, 50, 0.9, 0.05], [1.0, 20, 0.9, 0.05], [0.5, 200, 0.9, 0.05], [0.0, 100, 0.9, 0.05]],
    "no top-k": [[0.7, 0, 0.9, 0.05], [1.0, 0, 0.9, 0.0], [0.5, 0, 0.95, 0.05], [0.0, 0, 0.9, 0.05]],
    "temperature only": [[0.7, 0, 1, 0], [1.0, 0, 1, 0], [0.5, 0, 1, 0], [0.0, 0, 1, 0]],
    "hot, no top-k": [[1.5, 0, 0.9, 0], [1.2, 0, 0.95, 0], [1.5, 0, 0.9, 0.02], [1.2, 0, 0.9, 0]],
}


def transformers_step(logits_BV: Tensor, kind: str) -> Tensor:
    """(B, 1) tokens as `generate` draws them."""
    warpers = [TemperatureLogitsWarper(0.7)]
    if kind == "with top-k":
        warpers.append(TopKLogitsWarper(50))
    if kind != "temperature only":
        warpers += [TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)]
    for warper in warpers:
        logits_BV = warper(None, logits_BV)
    return torch.multinomial(logits_BV.softmax(-1), 1)


def compare(V: int, B: int, kind: str) -> Row:
    """One row of the table."""
    logits_BV = synthetic_logits(B, V)
    values = torch.tensor([KINDS[kind][b % 4] for b in range(B)])
    row_B = torch.arange(B)
    step = iter(range(10**9))

    def ours() -> Tensor:
        return sample_values(logits_BV, SPACE, values, 0, row_B, torch.full_like(row_B, next(step)))

    rounds = {1: 60, 8: 20}.get(B, 5)
    seconds = interleaved({"theirs": lambda: transformers_step(logits_BV, kind), "ours": ours}, rounds)
    ratio, goal = seconds["theirs"] / seconds["ours"], GOALS.get((V, kind), {}).get(B)
    return {
        "V": V, "B": B, "rows": kind, "transformers ms": seconds["theirs"] * 1e3, "ours ms": seconds["ours"] * 1e3,
        "ratio": ratio, "target": goal, "met": None if goal is None else ratio >= goal,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="folder for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [compare(V, B, kind) for V in (32_000, 128_256) for kind in KINDS for B in (1, 8, 64)]
    report("Per-row sampling against transformers' warpers + multinomial", rows, args.json and f"{args.json}/sampling.json")


if __name__ == "__main__":
    main()
