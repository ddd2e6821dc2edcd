"""A step of vLLM with a token head against one with fixed values: `.venv-vllm/bin/python -m benchmarks.vllm_step [--batch 64]`.

A random Llama (d = 512, four layers, V = 32,000) whose next-token distributions have about two nats of entropy, as real ones do,
in this process, on one thread. Times are those of the processor; contestants take turns, and what is reported are medians and
their ratio to fixed temperature and min-p, vLLM's own.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latentknobs.engines.vllm.engine import VLLMEngine
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every, WholeResponse
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy, Policy
from latentknobs.policies.names import policy_of

D, V, SPREAD = 512, 32_000, 4.0  # SPREAD: standard deviation of the logits


def random_lm() -> tuple[Any, Any]:
    """The model and a tokenizer that is never read."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=4 * D, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8,
        max_position_embeddings=512, tie_word_embeddings=False,
    ))  # fmt: skip
    torch.nn.init.normal_(model.lm_head.weight, std=SPREAD / D**0.5)
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(V)}, unk_token="w0"))
    return model.eval(), PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w0")


def policies() -> dict[str, Policy]:
    """Heads with random weights over temperature and min-p."""
    space = KnobSpace.of({"temperature": [0.0, 0.5, 0.8, 1.0]}, {"min_p": [0.02, 0.05, 0.1]}, order="vllm")
    head = OptionHead(space, D)
    torch.nn.init.normal_(head.mlp[-1].weight, std=0.5)
    return {
        "token head": HeadPolicy(head.eval(), space, Every(1)), "sequence head": HeadPolicy(head.eval(), space, WholeResponse()),
        "edt": policy_of("edt:base=1.0,theta=0.3"),
    }  # fmt: skip


def main() -> None:
    """Prints milliseconds of the processor per step, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = VLLMEngine(
        *random_lm(), max_num_seqs=options.batch, gpu_memory_utilization=0.15, enforce_eager=True, max_model_len=256
    )
    llm, known = engine._llm(), policies()
    for name, policy in known.items():
        llm.collective_rpc("latentknobs_register", args=(name, {"": policy}))
    fixed = {"temperature=1": {}, "temperature=0.8, min_p=0.05": {"temperature": 0.8, "min_p": 0.05}}
    contestants: dict[str, dict[str, Any]] = fixed | {name: {"extra_args": {"latentknobs": name}} for name in known}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(options.rounds + 1):
        for name, more in contestants.items():
            taken = run(llm, options.batch, options.tokens, more)
            if turn:
                times[name].append(taken)
    base = statistics.median(times["temperature=0.8, min_p=0.05"])
    print(f"B = {options.batch}, V = {V:,}, {options.tokens} tokens, medians of {options.rounds}, one thread")
    for name, line in times.items():
        print(f"{name:30} {1000 * statistics.median(line):8.1f} ms a step   {statistics.median(line) / base:.2f}")


def run(llm: Any, batch: int, tokens: int, more: dict[str, Any]) -> float:
    """Seconds of the processor per step."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False, **more)
    start = time.process_time()
    llm.generate([{"prompt_token_ids": [3, 5 + row]} for row in range(batch)], params, use_tqdm=False)
    return (time.process_time() - start) / tokens


if __name__ == "__main__":
    main()
