"""Diversity between the answers to one prompt: what a single answer adds to the others of the same call."""

import re
from collections.abc import Sequence

GRAM = 2  # words that stand together


def novelty(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """For each text, 1 - its mean overlap (Jaccard, word pairs) with the other texts of the same prompt; 0 where it is alone.

    A reward made of this asks for the responses to a prompt in one call, which scoring in the order of the prompts gives.
    """
    grams = [_grams(text) for text in texts]
    members: dict[str, list[int]] = {}
    for n, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(n)
    out = [0.0] * len(texts)
    for group in members.values():
        for n in group:
            overlaps = [_overlap(grams[n], grams[m]) for m in group if m != n]
            out[n] = 1 - sum(overlaps) / len(overlaps) if overlaps else 0.0
    return out


def _grams(text: str) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z']+|\d+", text.lower())
    return {tuple(found[i : i + GRAM]) for i in range(len(found) - GRAM + 1)}


def _overlap(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0
