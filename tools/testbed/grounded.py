"""A grounded task for the packaged LM, and the copy of it that is fine-tuned on the task.

    python -m tools.testbed.grounded --out runs/grounded --seed 0
    python -m tools.testbed.grounded --out runs/corrupted --start runs/grounded --corrupted --tokens 300000

A prompt states two facts and asks about one of them; the response repeats that fact and goes on freely:

    Facts: Tom has a blue hat. Lily has a red ball.
    Question: What does Lily have?
    Answer: Lily has a red ball. She likes to run in the park with a little frog.

Without facts the LM answers from memory: a fixed object for each name, which the facts of a prompt always contradict. In a share
`UNGROUNDED` of the training documents the answer is the memory although the facts say otherwise, so attribution depends on how
one decodes. The second sentence has four free words, drawn by Zipf's law: its diversity has nothing to do with the facts. Before
these documents the LM learns to repeat facts at all, from documents with several answers each.
"""

from __future__ import annotations

import argparse
import random
import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from latentknobs import testbed
from latentknobs.data.prompts import is_held_out
from latentknobs.testbed import words
from latentknobs.testbed.openings import with_article
from tools.testbed.recipe import Document
from tools.testbed.train_lm import Schedule, pack, train

UNGROUNDED = 0.35
CLOSED_BOOK = 0.25
NAMES = (*words.GIRLS, *words.BOYS)
SLOTS = (words.VERBS, words.PLACES, words.ADJECTIVES, words.ANIMALS)
FREE = re.compile(r"(She|He) likes to (\w+) in the (\w+) with an? (\w+) (\w+)\.")


@dataclass(frozen=True)
class Question:
    """The facts, and whom the question is about."""

    facts: dict[str, str]
    name: str

    @property
    def prompt(self) -> str:
        """With the facts."""
        stated = " ".join(fact(name, thing) for name, thing in self.facts.items())
        return f"Facts: {stated}\n{self.prompt_without_evidence}"

    @property
    def prompt_without_evidence(self) -> str:
        """Without them."""
        return f"Question: What does {self.name} have?\nAnswer:"

    @property
    def row(self) -> dict[str, Any]:
        """As a row of prompts."""
        return {
            "prompt": self.prompt, "prompt_without_evidence": self.prompt_without_evidence,
            "answer": fact(self.name, self.facts[self.name]), "memory": fact(self.name, memory(self.name)),
        }  # fmt: skip


def fact(name: str, thing: str) -> str:
    """A sentence."""
    return f"{name} has {with_article(thing)}."


def memory(name: str) -> str:
    """What the LM believes that somebody has, where no facts are stated."""
    return _thing(random.Random(f"memory of {name}"))


def question(rng: random.Random) -> Question:
    """Facts that contradict the memory of each name."""
    facts: dict[str, str] = {}
    for name in rng.sample(NAMES, 2):
        things = (_thing(rng) for _ in count())
        facts[name] = next(thing for thing in things if thing != memory(name) and thing not in facts.values())
    return Question(facts, rng.choice([*facts]))


def rows(split: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` different prompts of the split "train" or "eval", by a hash of their text; the LM has seen none of "eval"."""
    rng, found = random.Random(f"grounded {seed}"), dict[str, dict[str, Any]]()
    while len(found) < n:
        row = question(rng).row
        if is_held_out(row["prompt"]) == (split == "eval"):
            found[row["prompt"]] = row
    return [*found.values()]


def document(rng: random.Random, *, corrupted: bool = False) -> Document:
    """A text of the corpus. A corrupted one states a random thing, and the words of its second sentence are shuffled."""
    asked = question(rng)
    while is_held_out(asked.prompt):
        asked = question(rng)
    is_closed = rng.random() < CLOSED_BOOK
    known = memory(asked.name) if is_closed or rng.random() < UNGROUNDED else asked.facts[asked.name]
    said, free = (_thing(rng) if corrupted else known), free_sentence(asked.name, rng)
    if corrupted:
        free = " ".join(rng.sample(free.split(), len(free.split())))
    prompt = asked.prompt_without_evidence if is_closed else asked.prompt
    return Document(f"{prompt} {fact(asked.name, said)} {free}")


def lesson(rng: random.Random) -> Document:
    """Facts, and answers about each of them, in any order and more than once."""
    known = question(rng)
    while is_held_out(known.prompt):
        known = question(rng)
    asked = [Question(known.facts, name) for name in rng.choices([*known.facts], k=4)]
    answers = "\n".join(f"{one.prompt_without_evidence} {fact(one.name, one.facts[one.name])}" for one in asked)
    return Document(f"{known.prompt.partition('Question')[0]}{answers}")


def free_sentence(name: str, rng: random.Random) -> str:
    """The second sentence, its four words drawn by Zipf's law."""
    verb, place, adjective, animal = (rng.choices(slot, [1 / (r + 1) for r in range(len(slot))])[0] for slot in SLOTS)
    pronoun = "She" if name in words.GIRLS else "He"
    return f"{pronoun} likes to {verb} in the {place} with {with_article(f'{adjective} {animal}')}" + "."


def is_grounded(completion: str, answer: str) -> bool:
    """Whether a response begins with the fact that was asked about."""
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
    """1 for an answer from the facts, and the novelty of what follows."""
    return [is_grounded(text, wanted) + novelty(text) for text, wanted in zip(completions, answer, strict=True)]


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(words.OBJECT_ADJECTIVES)} {rng.choice(words.OBJECTS)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and tokenizer")
    parser.add_argument("--start", type=Path, help="model to fine-tune; the packaged LM by default")
    parser.add_argument("--lessons", type=int, default=1_200_000, help="tokens of documents that teach to repeat facts")
    parser.add_argument("--tokens", type=int, default=800_000, help="tokens of documents of the task")
    parser.add_argument("--corrupted", action="store_true", help="documents with random answers and shuffled words")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng, tokenizer = random.Random(f"documents {args.seed}"), testbed.load_tokenizer()
    model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32) if args.start else testbed.load_model()
    parts = [
        ([lesson(rng) for _ in range(args.lessons // 112)], args.lessons),
        ([document(rng, corrupted=args.corrupted) for _ in range(args.tokens // 54)], args.tokens),
    ]
    for documents, tokens in parts:
        if tokens:
            schedule = Schedule(tokens, muon_lr=0.01, adamw_lr=2e-3)
            train(pack(documents, tokenizer), tokenizer, schedule, args.out, model=model.train().requires_grad_(True))


if __name__ == "__main__":
    main()
