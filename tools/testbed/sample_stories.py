"""Stories sampled from the small pretrained `stories260K`, to widen the 2 MB of real TinyStories.

    python -m tools.testbed.sample_stories --data DIR --out sampled.jsonl --n 12800 --seed 0

Half of the samples continue the first sentence of a real story, half continue an opening of the testbed's own templates, so
that the trained LM knows the openings it will be prompted with. One JSON object a line: `text`, and whether the story ended by
itself, `complete`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from latentknobs.testbed.openings import story_opening

STORY_END = 1  # stories260K ends a story with its BOS token
STORY_SEPARATOR = "<|endoftext|>"
ASCII_FOR = {"\u201c": '"', "\u201d": '"', "\u2019": "'", "\u2018": "'", "\u2013": "-", "\u2014": "-", "\u2026": "..."}


def read_stories(data: Path) -> list[str]:
    """The real TinyStories of the data folder, stripped, with plain ASCII quotes."""
    text = (data / "tinystories" / "tinystories_sample.txt").read_text(encoding="utf-8")
    for fancy, plain in ASCII_FOR.items():
        text = text.replace(fancy, plain)
    stories = (re.sub(r"\s*\n\s*", "\n", story).strip() for story in text.split(STORY_SEPARATOR))
    return [story for story in stories if story.isascii() and len(story) > 100]


def starts(stories: list[str], n: int, rng: random.Random) -> list[str]:
    """`n` story beginnings: first sentences of real stories and openings of our templates, in equal parts."""
    real = [match.group() for story in stories if (match := re.match(r"[^.!?\n\"]{10,90}[.!?]", story))]
    return [rng.choice(real) if i % 2 else story_opening(rng).text for i in range(n)]


@torch.inference_mode()
def sample(data: Path, texts: list[str], *, temperature: float, max_new_tokens: int, seed: int) -> list[dict[str, object]]:
    """Continue `texts` with stories260K, left-padded in one batch; each row is `{"text", "complete"}`."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(data / "stories260K", local_files_only=True, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(data / "stories260K", local_files_only=True).eval()
    tokenizer.pad_token_id = 2
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    output = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=True, temperature=temperature,
        top_k=0, max_new_tokens=max_new_tokens, eos_token_id=STORY_END, pad_token_id=2,
    )  # fmt: skip
    new_tokens = output[:, inputs["input_ids"].shape[1] :]
    return [
        {"text": tokenizer.decode(row, skip_special_tokens=True).strip(), "complete": bool((new == STORY_END).any())}
        for row, new in zip(output, new_tokens, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with stories260K/ and tinystories/")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to write")
    parser.add_argument("--n", type=int, default=12_800)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-new-tokens", type=int, default=230)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = starts(read_stories(args.data), args.n, random.Random(args.seed))
    with args.out.open("w", encoding="utf-8") as file:
        for first in range(0, args.n, args.batch):
            rows = sample(
                args.data, texts[first : first + args.batch], temperature=args.temperature,
                max_new_tokens=args.max_new_tokens, seed=args.seed + first,
            )  # fmt: skip
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            print(f"{first + len(rows)} of {args.n}", flush=True)


if __name__ == "__main__":
    main()
