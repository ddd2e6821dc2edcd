"""Hand rules: what somebody who knows the task would write, by name. Each gives the test for "cold here"."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentknobs.heads.segmenters import Delimiter, parse_level

Test = Callable[[Tensor | None, Tensor], Tensor]  # the token before, None at the first of a response; the logits


def sentence_starts(tokenizer: Any) -> Test:
    """Cold at the first token of a response or a sentence: where the constraint of the constrained stories acts."""
    ends = _ids(tokenizer, ".!?")

    def is_cold(previous_N: Tensor | None, logits_NV: Tensor) -> Tensor:
        if previous_N is None:
            return torch.ones(len(logits_NV), dtype=torch.bool, device=logits_NV.device)
        return torch.isin(previous_N, ends.to(previous_N.device))

    return is_cold


def inside_words(tokenizer: Any) -> Test:
    """Cold unless the next token probably begins a word (for tokenizers that mark beginnings with U+2581)."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    is_start_V = torch.tensor([token.startswith("▁") for token in tokens])
    return lambda previous_N, logits_NV: logits_NV.softmax(-1)[:, is_start_V.to(logits_NV.device)].sum(-1) <= 0.5


def after_newline(tokenizer: Any) -> Test:
    """Cold from the first newline of the response on: invent hot, answer cold."""
    ends = _ids(tokenizer, "\n")
    answering = torch.zeros(0, dtype=torch.bool)

    def is_cold(previous_N: Tensor | None, logits_NV: Tensor) -> Tensor:
        nonlocal answering
        if previous_N is None:
            answering = torch.zeros(len(logits_NV), dtype=torch.bool, device=logits_NV.device)
        else:
            answering = answering | torch.isin(previous_N, ends.to(previous_N.device))
        return answering

    return is_cold


RULES: dict[str, Callable[[Any], Test]] = {
    "sentence_starts": sentence_starts, "inside_words": inside_words, "after_newline": after_newline,
}  # fmt: skip


def _ids(tokenizer: Any, characters: str) -> Tensor:
    segmenter = parse_level(f"delimiter:{characters}", tokenizer)
    assert isinstance(segmenter, Delimiter)
    return torch.tensor(segmenter.token_ids)
