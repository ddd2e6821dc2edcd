"""What a step of adaptive decoding costs over greedy decoding, one thread: `python -m benchmarks.generate [--json DIR]`.

A Llama of random weights (d = 256, 4 layers) generates with transformers' own loop: greedy, with four fixed warpers, and with a
learned head choosing among 384 options of four knobs for every token of every row. Contestants take turns.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.timing import Row, interleaved, report
from latentknobs import KnobSpace
from latentknobs.decoding import Attached
from latentknobs.heads import OptionHead
from latentknobs.policies import HeadPolicy
from latentknobs.segments import Every

SPACE = KnobSpace.of("temperature", "top_k", "top_p", "min_p")
GOALS = {32_000: 1.10, 128_256: 1.08}
PROMPT, TOKENS = 16, 32  # the time of a call, divided by its tokens: the prompt is short enough not to matter


def model_of(V: int) -> Any:
    """A random Llama whose distributions are about as sharp as a trained one's."""
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=V, eos_token_id=None, pad_token_id=0, **shape)).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.25)
    return model


def policy_for(model: Any) -> HeadPolicy:
    """An untrained head of the default width: its cost is that of a trained one."""
    head = OptionHead(SPACE, model.config.hidden_size)
    torch.nn.init.normal_(head.mlp[-1].weight, std=0.5)
    return HeadPolicy(head, SPACE, Every(1), pick="greedy")


def per_step(model: Any, B: int, V: int) -> Row:
    """Milliseconds per step of each way to decode."""
    ids_BL, policy = torch.randint(3, V, (B, PROMPT)), policy_for(model)
    warpers = {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.05}

    def run(tokens: int, **settings: Any) -> Callable[[], Any]:
        return lambda: model.generate(ids_BL, max_new_tokens=tokens, attention_mask=torch.ones_like(ids_BL), **settings)

    def attached(tokens: int, sampler: Any) -> Callable[[], Any]:
        def go() -> None:
            with Attached(model, policy, sampler=sampler):
                model.generate(ids_BL, max_new_tokens=tokens, attention_mask=torch.ones_like(ids_BL))

        return go

    ways: dict[str, Callable[[int], Callable[[], Any]]] = {
        "greedy": lambda n: run(n, do_sample=False),
        "four fixed warpers": lambda n: run(n, **warpers),
        "adaptive": lambda n: attached(n, "own"),
        "adaptive, sampled by transformers": lambda n: attached(n, "transformers"),
    }
    seconds = interleaved({name: way(TOKENS) for name, way in ways.items()}, rounds=11)
    step = {name: seconds[name] / TOKENS * 1e3 for name in ways}
    goal = GOALS.get(V) if B == 8 else None
    ratio = step["adaptive"] / step["greedy"]
    row: Row = {"V": V, "B": B, "greedy ms/step": step["greedy"]}
    row |= {f"{name} x": step[name] / step["greedy"] for name in list(ways)[1:]}
    return row | {"target": goal, "met": None if goal is None else ratio <= goal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="folder for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for V in (32_000, 128_256):
        model = model_of(V)
        rows += [per_step(model, B, V) for B in (1, 8)]
    report("Cost of a decoding step over greedy", rows, args.json and f"{args.json}/generate.json")


if __name__ == "__main__":
    main()
