"""Where the prompts and responses of what `generate` returned begin and end."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor


def end_of(response: Sequence[int], stop: Collection[int]) -> int:
    """Number of tokens up to and with the first one that ends a response."""
    return next((t + 1 for t, token in enumerate(response) if token in stop), len(response))


def stop_ids(config: Any) -> list[int]:
    """The tokens that end a response, by a generation config."""
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list) else [] if ends is None else [ends]


def split_sequences(
    model: Any, sequences_BL: Tensor, prompt_length: int, attention_mask_BP: Tensor | None = None,
    lengths: Sequence[int] | None = None,
) -> tuple[list[list[int]], list[list[int]]]:  # fmt: skip
    """Prompt ids without padding, and response ids up to and with the end-of-sequence token (or of the given `lengths`)."""
    stop = set(stop_ids(model.generation_config))
    prompts, responses = [], []
    copies = 1 if attention_mask_BP is None else max(len(sequences_BL) // len(attention_mask_BP), 1)  # of each prompt
    for b, row in enumerate(sequences_BL.tolist()):
        keep = [True] * prompt_length if attention_mask_BP is None else attention_mask_BP[b // copies].bool().tolist()
        prompts.append([token for token, real in zip(row[:prompt_length], keep, strict=True) if real])
        response = row[prompt_length:]
        end = end_of(response, stop) if lengths is None else lengths[b]
        responses.append(response[:end])
    return prompts, responses
