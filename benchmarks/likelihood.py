"""Likelihood tables against a loop over transformers' own warpers, one thread: `python -m benchmarks.likelihood [--json PATH]`.

The loop warps, normalises and gathers once per option, as everybody would write it (temperature 0: an argmax). For 384
options it is timed on some options and rows and scaled up, since the whole would take minutes per row of the table.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from benchmarks.timing import Row, interleaved, peak_extra, report, synthetic_logits
from latentknobs import KnobSpace, option_logps

SIX = KnobSpace.of("temperature")
JOINT = KnobSpace.of("temperature", "top_k", "top_p", "min_p")
HOT = KnobSpace.of({"temperature": [0, 0.4, 0.7, 1.0, 1.2, 1.5]}, "top_k", "top_p", "min_p")
GOALS = {
    512: {"joint": 200, "six": 1.0},
    32_000: {"joint": 1000, "six": 2.3},
    128_256: {"joint": 1500, "six": 4.4},
}


def warped(logits_NV: Tensor, option: dict[str, float]) -> Tensor:
    """(N, V) what transformers samples from under one option."""
    if option["temperature"] == 0:
        best_N1 = logits_NV.argmax(-1, keepdim=True)
        return torch.full_like(logits_NV, -torch.inf).scatter(-1, best_N1, 0.0)
    if option["temperature"] != 1:
        logits_NV = TemperatureLogitsWarper(option["temperature"])(None, logits_NV)
    if option.get("top_k"):
        logits_NV = TopKLogitsWarper(int(option["top_k"]))(None, logits_NV)
    if option.get("top_p", 1) < 1:
        logits_NV = TopPLogitsWarper(option["top_p"])(None, logits_NV)
    if option.get("min_p"):
        logits_NV = MinPLogitsWarper(option["min_p"])(None, logits_NV)
    return logits_NV


def loop(logits_NV: Tensor, targets_N: Tensor, options: list[dict[str, float]]) -> Tensor:
    """(N, K) the contestant."""
    columns = [warped(logits_NV, option).log_softmax(-1).gather(-1, targets_N.unsqueeze(-1)) for option in options]
    return torch.cat(columns, -1)


def targets_of(logits_NV: Tensor) -> Tensor:
    """(N,) tokens sampled at temperature 1."""
    return torch.cat([part.softmax(-1).multinomial(1).squeeze(-1) for part in logits_NV.split(32)])


def compare(name: str, space: KnobSpace, N: int, V: int, goal: float | None, rounds: int, device: str = "cpu") -> Row:
    """One row of the table."""
    logits_NV = synthetic_logits(N, V).to(device)
    targets_N = targets_of(logits_NV)
    options, rows, scale = space.options, N, 1.0
    if space.K > 6:
        options = options[:: 5 if V < 1000 else 16]  # 16 and 5 hit every value of every knob
        rows = min(N, {512: N, 32_000: 32}.get(V, 8))
        scale = space.K / len(options)
    run: dict[str, Callable[[], object]] = {
        "loop": lambda: loop(logits_NV[:rows], targets_N[:rows], options),
        "ours": lambda: option_logps(logits_NV, targets_N, space),
        "read": lambda: logits_NV.sum(),
    }
    seconds = interleaved(run, rounds)
    ours, naive = seconds["ours"] / N * 1e6, seconds["loop"] * scale / rows * 1e6
    extra = peak_extra(run["ours"]) if device == "cpu" else None
    goal = goal if device == "cpu" else None  # targets were set for one thread
    return {
        "what": name, "V": V, "N": N, "loop us/token": naive, "ours us/token": ours, "ratio": naive / ours, "target": goal,
        "x one read": seconds["ours"] / seconds["read"],
        "extra memory": None if extra is None else extra / logits_NV.nbytes,
        "met": None if goal is None else naive / ours >= goal,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="folder for the figures")
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[512, 32_000, 128_256])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.device != "cpu":
        each = [("384 options", JOINT), ("384 options, T up to 1.5", HOT), ("6 temperatures", SIX)]
        rows = [compare(name, space, 256, V, None, 5, args.device) for V in args.vocabularies for name, space in each]
        report("Likelihood tables on a GPU", rows, args.json and f"{args.json}/likelihood_gpu.json")
        return
    rows = []
    for V in args.vocabularies:
        goals: dict[str, float] = GOALS.get(V, {})
        rows.append(compare("384 options", JOINT, 256, V, goals.get("joint"), 5 if V < 1000 else 3))
        rows.append(compare("384 options, T up to 1.5", HOT, 256, V, None, 3))
        rows.append(compare("6 temperatures", SIX, 256, V, goals.get("six"), 15 if V < 1000 else 5))
    report("Likelihood tables against a loop of transformers' warpers", rows, args.json and f"{args.json}/likelihood.json")


if __name__ == "__main__":
    main()
