"""What rollouts cost where the copies of one prompt share its reading."""

import time
from typing import Any

import torch

import latentknobs as lk
from benchmarks.instruct.tasks import TASKS
from benchmarks.timing import interleaved
from latentknobs.data.prompts import make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.heads.segmenters import Every
from latentknobs.policies import UniformPolicy


def measure(model: Any, tokenizer: Any, copies: int, rounds: int) -> None:
    """Time (of the processor, or on a GPU by the clock) of 64 responses as long as their prompts: ours over transformers' own."""
    prompts = make_prompts(TASKS["so"].rows(False, 64 // copies), tokenizer)
    tokens = max(len(prompt.ids) for prompt in prompts)
    policy = UniformPolicy(lk.KnobSpace.of("temperature:0.4,0.8,1"), Every(1))
    model.generation_config.eos_token_id = None  # responses of one length
    ids = [list(prompt.ids) for prompt in prompts for _ in range(copies)]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)

    def plain() -> None:
        model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=tokens, pad_token_id=0)

    def ours() -> None:
        roll_out(model, tokenizer, prompts, policy, copies=copies, max_new_tokens=tokens, batch_size=64, seed=0)

    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds = interleaved({"ours": ours, "plain": plain}, rounds=rounds, clock=clock)
    print(f"{tokens} tokens, {copies} copies: {seconds['ours']:.2f} s against {seconds['plain']:.2f} s, "
          f"{seconds['ours'] / seconds['plain']:.2f} of it")  # fmt: skip
