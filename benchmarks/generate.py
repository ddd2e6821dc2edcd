"""What a step of adaptive decoding costs over greedy decoding: `python -m benchmarks.generate [--json DIR] [--device cuda]`.

A Llama of random weights generates with transformers' own loop: greedy, with four fixed warpers, and with a learned head that
chooses an option for every token of every row. Contestants take turns. On a CPU: one thread, d = 256, 4 layers, 384 options of
four knobs. On a GPU: the shape of an 8B Llama in bfloat16, 6 and 384 options, heads of width 256 and 2,048; there the host, not
the GPU, sets the pace of `generate`, so ratios are medians over turns, and the waits of the host are counted.
"""

import argparse
import warnings
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.timing import Row, report, turns
from latentknobs import KnobSpace
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.frozen import output_embeddings
from latentknobs.engines.transformers.modes import Sampler
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.policies import HeadPolicy

SPACE = KnobSpace.of("temperature", "top_k", "top_p", "min_p")
SIX = KnobSpace.of("temperature")
GOALS = {32_000: 1.10, 128_256: 1.08}
PROMPT, TOKENS = 16, 32  # the time of a call, divided by its tokens: the prompt is short enough not to matter
WARPERS = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.05}
SMALL = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
LARGE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip


def model_of(V: int, shape: dict[str, int], device: str) -> Any:
    """A random Llama whose distributions are about as sharp as a trained one's: logits of deviation 4."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(vocab_size=V, eos_token_id=None, pad_token_id=0, **shape)).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        output_embeddings(model).get_parameter("weight").normal_(std=4 / shape["hidden_size"] ** 0.5)
    return model


def policy_for(model: Any, space: KnobSpace = SPACE, width: int = 256) -> HeadPolicy:
    """An untrained head: its cost is that of a trained one."""
    head = OptionHead(space, model.config.hidden_size, hidden=width)
    torch.nn.init.normal_(head.mlp[-1].weight, std=0.5)
    return HeadPolicy(head.to(model.device), space, Every(1), pick="greedy")


def writer(model: Any, B: int, **settings: Any) -> Callable[..., Any]:
    """Writes TOKENS (or more) tokens after B prompts, always the same."""
    ids_BL = torch.randint(3, model.config.vocab_size, (B, PROMPT), generator=torch.Generator().manual_seed(B)).to(model.device)
    inputs = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    return lambda tokens=TOKENS: model.generate(**inputs, max_new_tokens=tokens, **settings)


def adaptive(model: Any, policy: HeadPolicy, B: int, sampler: Sampler = "own") -> Callable[..., Any]:
    """The same by a twin of the model, of the same weights, that the policy stays attached to."""
    weights = (*model.parameters(), *model.buffers())
    twin = deepcopy(model, {id(part): part for part in weights})
    Attached(twin, policy, sampler=sampler)
    return writer(twin, B)


def on_cpu(model: Any, B: int, V: int) -> Row:
    """Milliseconds per step of each way to decode."""
    policy = policy_for(model)
    runs: dict[str, Callable[[], Any]] = {
        "greedy": writer(model, B, do_sample=False),
        "four fixed warpers": writer(model, B, **WARPERS),
        "adaptive": adaptive(model, policy, B),
        "adaptive, sampled by transformers": adaptive(model, policy, B, "transformers"),
    }
    step = {name: median(seconds) / TOKENS * 1e3 for name, seconds in turns(runs, rounds=9).items()}
    goal, ratio = GOALS.get(V) if B == 8 else None, step["adaptive"] / step["greedy"]
    row: Row = {"V": V, "B": B, "greedy ms/step": step["greedy"]}
    row |= {f"{name} x": step[name] / step["greedy"] for name in list(runs)[1:]}
    return row | {"target": goal, "met": None if goal is None else ratio <= goal}


def on_gpu(model: Any, B: int, rounds: int) -> list[Row]:
    """The step of each policy over that of greedy decoding."""
    L = model.config.num_hidden_layers
    runs = {"greedy": writer(model, B, do_sample=False), "four fixed warpers": writer(model, B, **WARPERS)}
    for K, space in ((6, SIX), (384, SPACE)):
        for width in (256, 2048):
            policy, what = policy_for(model, space, width), f"{K} options, head {width}"
            runs[what] = adaptive(model, policy, B)
    seconds = turns(runs, rounds)
    waits_of = {what: waits(run) for what, run in runs.items()}
    rows: list[Row] = []
    for what in list(runs)[1:]:
        both = list(zip(seconds[what], seconds["greedy"], strict=True))
        ratio, extra = median(a / b for a, b in both), median(a - b for a, b in both) / TOKENS * 1e3
        goal = 1.01 if LARGE["num_hidden_layers"] == L and "options" in what else None
        rows.append({
            "layers": L, "B": B, "what": what, "greedy ms/step": median(seconds["greedy"]) / TOKENS * 1e3, "x greedy": ratio,
            "extra ms/step": extra, "waits/step": waits_of[what], "greedy's": waits_of["greedy"], "target": goal,
            "met": None if goal is None else ratio <= goal,
        })  # fmt: skip
    return rows


def waits(call: Callable[..., Any]) -> float:
    """How often the host waits for the GPU in a step."""

    def count(tokens: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call(tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in caught)

    return (count(24) - count(8)) / 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="folder for the figures")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batches", type=int, nargs="*", help="default: 1 8 on a CPU, 1 8 64 on a GPU")
    parser.add_argument("--rounds", type=int, default=9, help="turns on a GPU")
    parser.add_argument("--layers", type=int, default=32, help="fewer, on a GPU, tell the extra time of a step with less noise")
    args = parser.parse_args()
    rows = []
    if args.device == "cpu":
        torch.set_num_threads(1)
        for V in (32_000, 128_256):
            model = model_of(V, SMALL, args.device)
            rows += [on_cpu(model, B, V) for B in args.batches or (1, 8)]
        report("Cost of a decoding step over greedy", rows, args.json and f"{args.json}/generate.json")
        return
    model = model_of(128_256, LARGE | {"num_hidden_layers": args.layers}, args.device)
    for B in args.batches or (1, 8, 64):
        rows += on_gpu(model, B, args.rounds)
    report("Cost of a decoding step over greedy, 8B shape", rows, args.json and f"{args.json}/generate_gpu_{args.layers}.json")


if __name__ == "__main__":
    main()
