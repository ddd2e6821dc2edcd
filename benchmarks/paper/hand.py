"""Hand rules: what somebody who knows the task would write, by name. Each says where to be cold."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latentknobs.heads.segmenters import Delimiter, parse_level
from latentknobs.knobs.context import Observation
from latentknobs.policies import Policy, State
from latentknobs.policies.rules import SentenceStart, TwoTemperatures


def sentence_starts(tokenizer: Any, cold: float, hot: float, min_p: float = 0.0) -> Policy:
    """Cold at the first token of a response or a sentence: where the constraint of the constrained stories acts."""
    return SentenceStart(cold, hot, min_p, ".!?", tokenizer)


class InsideWords(TwoTemperatures):
    """Cold unless the next token probably begins a word (for tokenizers that mark beginnings with U+2581)."""

    def __init__(self, tokenizer: Any, cold: float, hot: float, min_p: float = 0.0) -> None:
        super().__init__(cold, hot, min_p)
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.is_start_V = torch.tensor([token.startswith("▁") for token in tokens])

    def is_cold(self, seen: Observation, state: State) -> Tensor:
        """(N,) by the LM's own mass of beginnings."""
        logits_NV = seen.logits_NV
        return logits_NV.softmax(-1)[:, self.is_start_V.to(logits_NV.device)].sum(-1) <= 0.5


class AfterNewline(TwoTemperatures):
    """Cold from the first newline of the response on: invent hot, answer cold. Its state says which rows are past it."""

    def __init__(self, tokenizer: Any, cold: float, hot: float, min_p: float = 0.0) -> None:
        super().__init__(cold, hot, min_p)
        newline = parse_level("delimiter:\n", tokenizer)
        assert isinstance(newline, Delimiter)
        self.ids = newline.token_ids

    def start(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """Before it."""
        return torch.zeros(rows, dtype=torch.bool, device=device)

    def observe(self, token_N: Tensor, state: State) -> Tensor:
        """A newline sets it for good."""
        return state | torch.isin(token_N, torch.tensor(self.ids, device=token_N.device))

    def is_cold(self, seen: Observation, state: State) -> Tensor:
        """(N,) the state."""
        return state


RULES: dict[str, Callable[..., Policy]] = {
    "sentence_starts": sentence_starts, "inside_words": InsideWords, "after_newline": AfterNewline,
}  # fmt: skip
