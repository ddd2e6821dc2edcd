"""A grounded task, where a program checks whether an answer comes from the prompt, and a tiny LM of its own (0.4 MB).

    python -m tools.testbed.grounded --out runs/grounded --seed 0
    python -m tools.testbed.grounded --out runs/corrupted --start runs/grounded --corrupted --steps 20

A prompt states a fact and asks about it; the response repeats that fact and goes on freely:

    Facts : Lily has a red ball . Question : what has Lily ? Answer :
    Lily has a red ball . She likes to run in the park with a little frog .

Without it the LM answers from memory: a fixed object for each name, which the fact in a prompt always contradicts. In a share
`UNGROUNDED` of the training documents the answer is the memory although the fact says otherwise, so attribution depends on how
one decodes. The second sentence has four free words, drawn by Zipf's law: its diversity has nothing to do with the fact. Every
word is one token.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latentknobs.data.prompts import is_held_out
from latentknobs.testbed import words

UNGROUNDED = 0.35
CLOSED_BOOK = 0.2
BATCH = 64
IGNORED = -100
NAMES = (*words.GIRLS[:12], *words.BOYS[:12])
SLOTS = (words.VERBS, words.PLACES, words.ADJECTIVES, words.ANIMALS)
FREE = re.compile(r"(She|He) likes to (\w+) in the (\w+) with a (\w+) (\w+) \.")
SPECIAL = ("<s>", "</s>", "<unk>")


@dataclass(frozen=True)
class Question:
    """Who has what, against memory."""

    name: str
    thing: str

    @property
    def prompt(self) -> str:
        """With the fact."""
        return f"Facts : {fact(self.name, self.thing)} {self.prompt_without_evidence}"

    @property
    def prompt_without_evidence(self) -> str:
        """Without it."""
        return f"Question : what has {self.name} ? Answer :"

    @property
    def row(self) -> dict[str, Any]:
        """As a row of prompts."""
        return {
            "prompt": self.prompt, "prompt_without_evidence": self.prompt_without_evidence,
            "answer": fact(self.name, self.thing), "memory": fact(self.name, memory(self.name)),
        }  # fmt: skip


def fact(name: str, thing: str) -> str:
    """A sentence."""
    return f"{name} has a {thing} ."


def memory(name: str) -> str:
    """What the LM believes that somebody has, where nothing is stated."""
    return _thing(random.Random(f"memory of {name}"))


def question(rng: random.Random) -> Question:
    """A fact that contradicts memory."""
    name = rng.choice(NAMES)
    return Question(name, next(thing for thing in (_thing(rng) for _ in count()) if thing != memory(name)))


def rows(split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` different prompts of the split "train" or "eval", by a hash of their text; no document holds one of "eval"."""
    rng, found = random.Random(f"grounded {seed}"), dict[str, dict[str, Any]]()
    while len(found) < n:
        row = question(rng).row
        if is_held_out(row["prompt"]) == (split == "eval"):
            found[row["prompt"]] = row
    return [*found.values()]


def document(rng: random.Random, *, ungrounded: float = UNGROUNDED, corrupted: bool = False) -> tuple[str, str]:
    """A prompt and a response. A corrupted one states a random thing, and the words of its second sentence are shuffled."""
    drawn = question(rng)
    while is_held_out(drawn.prompt):
        drawn = question(rng)
    is_closed = rng.random() < CLOSED_BOOK
    known = memory(drawn.name) if is_closed or rng.random() < ungrounded else drawn.thing
    said, free = (_thing(rng) if corrupted else known), free_sentence(drawn.name, rng)
    if corrupted:
        free = " ".join(rng.sample(free.split(), len(free.split())))
    return (drawn.prompt_without_evidence if is_closed else drawn.prompt), f"{fact(drawn.name, said)} {free}"


def free_sentence(name: str, rng: random.Random) -> str:
    """The second sentence, its four words drawn by Zipf's law."""
    verb, place, adjective, animal = (rng.choices(slot, [1 / (r + 1) for r in range(len(slot))])[0] for slot in SLOTS)
    return f"{'She' if name in words.GIRLS else 'He'} likes to {verb} in the {place} with a {adjective} {animal} ."


def is_grounded(completion: str, answer: str) -> bool:
    """Whether a response begins with the fact of its prompt."""
    return completion.strip().startswith(answer)


def free_words(completion: str) -> tuple[str, ...] | None:
    """The four free words of a response; None where its second sentence is not one, or is not its last."""
    _, _, rest = completion.strip().partition(". ")
    match = FREE.fullmatch(rest)
    found = match.groups()[1:] if match else ()
    return found if found and all(word in slot for word, slot in zip(found, SLOTS, strict=True)) else None


def novelty(completion: str) -> float:
    """In [0, 1]: the mean place of the free words in their lists, the most common word being first; 0 without such words."""
    found = free_words(completion)
    if found is None:
        return 0.0
    return sum(slot.index(word) / (len(slot) - 1) for word, slot in zip(found, SLOTS, strict=True)) / len(SLOTS)


def reward(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 for an answer from the fact, and the novelty of what follows."""
    return [is_grounded(text, wanted) + novelty(text) for text, wanted in zip(completions, answer, strict=True)]


reward.version = "1"  # type: ignore[attr-defined]


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(words.OBJECT_ADJECTIVES)} {rng.choice(words.OBJECTS)}"


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the task."""
    fixed = ["Facts", ":", "Question", "what", "has", "?", "Answer", "a", ".", "She", "He", "likes", "to", "in", "the", "with"]
    things = (*words.OBJECT_ADJECTIVES, *words.OBJECTS)
    vocabulary = dict.fromkeys([*SPECIAL, *fixed, *NAMES, *things, *(word for slot in SLOTS for word in slot)])
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>", padding_side="left"
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two layers, untrained."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=True, rms_norm_eps=1e-5,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def batch(rng: random.Random, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) ids and targets of documents, padded on the right; only responses are targets."""
    ids, targets = [], []
    for _ in range(BATCH):
        prompt, response = (tokenizer(text)["input_ids"] for text in document(rng, **settings))
        ids.append(torch.tensor([*prompt, *response[1:], 1]))
        targets.append(torch.tensor([IGNORED] * len(prompt) + [*response[1:], 1]))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=1), pad(targets, batch_first=True, padding_value=IGNORED)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int, corrupted: bool = False) -> float:
    """Trains in place; the mean loss of the last 50 steps in nats. Memory enters late, once facts are repeated."""
    rng, losses = random.Random(f"documents {seed}"), list[float]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / steps))
    started = time.monotonic()
    for step in range(steps):
        ungrounded = UNGROUNDED if corrupted or step > 0.6 * steps else 0.0
        ids_BL, target_BL = batch(rng, tokenizer, ungrounded=ungrounded, corrupted=corrupted)
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            rearrange(logits_BLV[:, :-1], "b l v -> b v l"), target_BL[:, 1:], ignore_index=IGNORED
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps} loss {sum(losses[-50:]) / 50:.3f} {time.monotonic() - started:.0f} s", flush=True)
    return sum(losses[-50:]) / len(losses[-50:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and tokenizer")
    parser.add_argument("--start", type=Path, help="LM to go on with; a new one by default")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--corrupted", action="store_true", help="documents with random answers and shuffled words")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = new_tokenizer()
    model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32) if args.start else new_model(tokenizer)
    train(model, tokenizer, args.steps, args.seed, args.corrupted)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
