"""The per-row sampler against transformers' warpers and `torch.multinomial`: `python -m benchmarks.sampling [--json DIR]`.

One thread. Each of our rows has knob values of its own, temperature 0 included; transformers gives all rows the same ones.
Without top-k, transformers runs its other three warpers. Rows with top-k have 20 to 200, top-p 0.9, min-p 0.05.
With `--device cuda`: larger batches, and a sampler that sorts whole rows (sort, softmax, cumulative mass, multinomial: top-p
alone, for all rows the same) as another contestant.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from benchmarks.timing import Row, interleaved, report, synthetic_logits
from latentknobs import KnobSpace
from latentknobs.engines.transformers.sampler import sample_values

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


def sorting_step(logits_BV: Tensor) -> Tensor:
    """(B, 1) tokens by top-p, from sorted rows."""
    sorted_BV, token_BV = logits_BV.sort(-1, descending=True)
    prob_BV = sorted_BV.softmax(-1)
    prob_BV = prob_BV.masked_fill(prob_BV.cumsum(-1) - prob_BV >= 0.9, 0.0)
    return token_BV.gather(-1, torch.multinomial(prob_BV, 1))


def sampler_of(logits_BV: Tensor, values_BJ: Tensor) -> Callable[[], Tensor]:
    """Our step."""
    row_B = torch.arange(len(logits_BV), device=logits_BV.device)
    step = iter(range(10**9))
    return lambda: sample_values(logits_BV, SPACE, values_BJ, 0, row_B, torch.full_like(row_B, next(step)))


def compare(V: int, B: int, kind: str, device: str) -> Row:
    """One row of the table."""
    logits_BV = synthetic_logits(B, V).to(device)
    values_BJ = torch.tensor([KINDS[kind][b % 4] for b in range(B)], device=device)
    ways: dict[str, Callable[[], Tensor]] = {"theirs": lambda: transformers_step(logits_BV, kind)}
    ways["ours"] = sampler_of(logits_BV, values_BJ)
    if device != "cpu":
        ways["sorting"] = lambda: sorting_step(logits_BV)
    seconds = interleaved(ways, {1: 60, 8: 20}.get(B, 5) if device == "cpu" else 40)
    ratio, goal = seconds["theirs"] / seconds["ours"], GOALS.get((V, kind), {}).get(B)
    row: Row = {"V": V, "B": B, "rows": kind, "transformers ms": seconds["theirs"] * 1e3, "ours ms": seconds["ours"] * 1e3}
    if device == "cpu":
        return row | {"ratio": ratio, "target": goal, "met": None if goal is None else ratio >= goal}
    by_sort, goal = seconds["sorting"] / seconds["ours"], 10 if B == 128 and kind != "temperature only" else None
    row |= {"sort ms": seconds["sorting"] * 1e3, "sort / ours": by_sort, "target": goal}
    return row | {"met": None if goal is None else by_sort >= goal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="folder for the figures")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    widths, batches = ((32_000, 128_256), (1, 8, 64)) if args.device == "cpu" else ((128_256,), (1, 8, 32, 128, 512))
    rows = [compare(V, B, kind, args.device) for V in widths for kind in KINDS for B in batches]
    name = "sampling" if args.device == "cpu" else "sampling_gpu"
    report("Per-row sampling against transformers' warpers + multinomial", rows, args.json and f"{args.json}/{name}.json")


if __name__ == "__main__":
    main()
