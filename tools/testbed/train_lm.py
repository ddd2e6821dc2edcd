"""Train the packaged LM from scratch, with its tokenizer and lexicon.

    python -m tools.testbed.sample_stories --data $LATENTKNOBS_DATA --out sampled.jsonl --seed 0
    python -m tools.testbed.train_lm --data $LATENTKNOBS_DATA --sampled sampled.jsonl --out model --seed 0

A small Llama; Muon for the matrices, AdamW for the rest; linear warm-up and linear decay; packed rows of the whole context;
bf16 autocast (measured 1.4 times faster than float32 on 2 cores). What is saved is an exponential average of the weights,
so that every snapshot is usable.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.testbed.recipe import Document, corpus
from tools.testbed.tokenizer import train_tokenizer

VOCAB_SIZE = 1024
CONTEXT = 256
IGNORED = -100


@dataclass(frozen=True)
class Schedule:
    """Length and pace of a training run."""

    tokens: int = 13_000_000
    rows_per_step: int = 12
    muon_lr: float = 0.02
    adamw_lr: float = 4e-3
    warmup_steps: int = 100
    average_decay: float = 0.99
    snapshot_every: int = 300

    @property
    def steps(self) -> int:
        return self.tokens // (self.rows_per_step * CONTEXT)

    def pace(self, step: int) -> float:
        """The share of the peak learning rate at `step`."""
        return min(1.0, (step + 1) / self.warmup_steps) * (1 - step / self.steps)


@dataclass(frozen=True)
class Shape:
    """Width and depth of a model; vocabulary and context are those of the testbed."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int


SHAPES = {
    "mini": Shape(64, 120, layers=2, heads=2, kv_heads=1),  # 0.14 million parameters
    "small": Shape(96, 256, layers=2, heads=3, kv_heads=1),  # 0.29 million parameters
    "packaged": Shape(192, 512, layers=3, heads=6, kv_heads=2),  # 1.4 million
}


def new_model(tokenizer: PreTrainedTokenizerFast, size: str = "packaged") -> LlamaForCausalLM:
    """A freshly initialised model of one of the `SHAPES`."""
    shape = SHAPES[size]
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def pack(documents: list[Document], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """All documents behind each other, cut into rows: (rows, CONTEXT) token ids as int16."""
    stream: list[int] = []
    for first in range(0, len(documents), 5_000):
        chunk = documents[first : first + 5_000]
        encoded = tokenizer([document.text for document in chunk])["input_ids"]
        for document, ids in zip(chunk, encoded, strict=True):
            stream += [*ids, tokenizer.eos_token_id] if document.complete else ids
    rows = len(stream) // CONTEXT
    return rearrange(torch.tensor(stream[: rows * CONTEXT], dtype=torch.int16), "(rows t) -> rows t", t=CONTEXT)


def next_token_loss(model: LlamaForCausalLM, ids_BT: Tensor, bos_id: int) -> Tensor:
    """Mean cross-entropy in nats; the start of the next document is never a target."""
    with torch.autocast("cpu", torch.bfloat16):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    targets_BT = ids_BT[:, 1:].masked_fill(ids_BT[:, 1:] == bos_id, IGNORED)
    return torch.nn.functional.cross_entropy(
        rearrange(logits_BTV[:, :-1].float(), "b t v -> b v t"), targets_BT, ignore_index=IGNORED
    )


def optimizers(model: LlamaForCausalLM, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=schedule.muon_lr, weight_decay=0.02),
        torch.optim.AdamW(others, lr=schedule.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(rows: Tensor, tokenizer: PreTrainedTokenizerFast, schedule: Schedule, out: Path, size: str = "packaged") -> float:
    """Train on packed `rows`, epochs reshuffled, snapshots into `out`; the mean loss of the last 200 steps in nats."""
    model = new_model(tokenizer, size)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(schedule.average_decay))
    optims = optimizers(model, schedule)
    scheduled = [torch.optim.lr_scheduler.LambdaLR(optim, schedule.pace) for optim in optims]
    order = torch.cat([torch.randperm(len(rows)) for _ in range(1 + schedule.tokens // rows.numel())])
    losses: list[float] = []
    started = time.monotonic()
    for step in range(schedule.steps):
        batch = rows[order[step * schedule.rows_per_step :][: schedule.rows_per_step]].long()
        loss = next_token_loss(model, batch, int(tokenizer.bos_token_id))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim, schedule_of in zip(optims, scheduled, strict=True):
            optim.step()
            schedule_of.step()
        model.zero_grad(set_to_none=True)
        averaged.update_parameters(model)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"step {step + 1}/{schedule.steps} loss {mean:.3f} {time.monotonic() - started:.0f} s", flush=True)
        if (step + 1) % schedule.snapshot_every == 0 or step + 1 == schedule.steps:
            save(averaged.module, tokenizer, out)
    return sum(losses[-200:]) / len(losses[-200:])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights as float16 safetensors beside the tokenizer; `model` itself stays float32."""
    stored = LlamaForCausalLM(model.config).half()
    stored.load_state_dict(model.state_dict())
    stored.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with tinystories/")
    parser.add_argument("--sampled", type=Path, required=True, help="what sample_stories wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and tokenizer")
    parser.add_argument("--tokens", type=int, default=Schedule.tokens)
    parser.add_argument("--problems", type=int, default=160_000)
    parser.add_argument("--real-copies", type=int, default=4)
    parser.add_argument("--size", choices=SHAPES, default="packaged", help="shape of the model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    documents = corpus(args.data, args.sampled, problems=args.problems, real_copies=args.real_copies, seed=args.seed)
    tokenizer = train_tokenizer((document.text for document in documents[:25_000]), VOCAB_SIZE, CONTEXT)
    rows = pack(documents, tokenizer)
    print(f"{len(documents)} documents, {rows.numel()} tokens", flush=True)
    loss = train(rows, tokenizer, Schedule(tokens=args.tokens), args.out, args.size)
    (args.out / "training.json").write_text(
        json.dumps({"seed": args.seed, "tokens": args.tokens, "corpus_tokens": rows.numel(), "loss_nats": round(loss, 4)})
    )


if __name__ == "__main__":
    main()
