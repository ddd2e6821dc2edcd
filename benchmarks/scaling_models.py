"""The three LMs of `benchmarks.scaling`: one recipe, one corpus, one tokenizer, one number of tokens, three shapes."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from latentknobs import testbed
from tools.testbed.recipe import corpus
from tools.testbed.sample_stories import read_stories, sample, starts
from tools.testbed.train_lm import Schedule, pack, train

SAMPLED = 3_200  # stories of stories260K
PROBLEMS = 40_000  # about half of the corpus, as in the packaged recipe
BATCH = 400


def ready_models(
    data: Path, out: Path, sizes: Iterable[str], tokens: int, sampled: int = SAMPLED, problems: int = PROBLEMS
) -> None:
    """Trains what is missing of the models in `out/SIZE/model`; a model is finished when its `training.json` is there."""
    missing = [size for size in sizes if not (out / size / "model" / "training.json").exists()]
    if not missing:
        return
    tokenizer = testbed.load_tokenizer()
    rows = _corpus_rows(data, out, tokenizer, sampled, problems)
    print(f"corpus: {rows.numel()} tokens", flush=True)
    for size in missing:
        folder = out / size / "model"
        torch.manual_seed(0)
        loss = train(rows, tokenizer, Schedule(tokens=tokens), folder, size)
        facts = {"seed": 0, "tokens": tokens, "corpus_tokens": rows.numel(), "loss_nats": round(loss, 4)}
        (folder / "training.json").write_text(json.dumps(facts), encoding="utf-8")


def load_model(out: Path, size: str) -> LlamaForCausalLM:
    """A finished model in float32, in eval mode, frozen."""
    model = LlamaForCausalLM.from_pretrained(out / size / "model", dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False)


def training_of(out: Path, size: str) -> dict[str, float]:
    """What is known of a model's training: tokens, loss in nats per token."""
    found: dict[str, float] = json.loads((out / size / "model" / "training.json").read_text(encoding="utf-8"))
    return found


def _corpus_rows(data: Path, out: Path, tokenizer: PreTrainedTokenizerFast, sampled: int, problems: int) -> Tensor:
    stories = out / "sampled.jsonl"
    if not stories.exists():
        _sample_stories(data, stories, sampled)
    documents = corpus(data, stories, problems=problems, real_copies=1, seed=0)
    return pack(documents, tokenizer)


def _sample_stories(data: Path, path: Path, n: int) -> None:
    texts = starts(read_stories(data), n, random.Random(0))
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        for first in range(0, n, BATCH):
            rows = sample(data, texts[first : first + BATCH], temperature=0.7, max_new_tokens=230, seed=first)
            file.writelines(json.dumps(row) + "\n" for row in rows)
    partial.replace(path)
