"""Records of what `generate` returned: where its prompts and responses begin and end."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from latentknobs.engines.base import observe
from latentknobs.engines.record import Record, record_of
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.engines.transformers.second import LeftPadded
from latentknobs.policies import Policy, reads


def read_record(
    model: Any, policy: Policy, seed: int, sequences_BL: Tensor, prompt_length: int, attention_mask_BP: Tensor | None = None,
    rows_B: Tensor | None = None, max_new_tokens: int | None = None, samples: int = 1, lengths: Sequence[int] | None = None,
    ignored: tuple[str, ...] = (), second: LeftPadded | None = None,
) -> Record:  # fmt: skip
    """The record of finished sequences. See `Attached.record` for the arguments; `rows_B` are keys of the uniforms."""
    prompts, responses = split_sequences(model, sequences_BL, prompt_length, attention_mask_BP, lengths)
    seen = observe(
        partial(read_responses, model), prompts, responses, reads(policy), max_new_tokens=max_new_tokens, samples=samples,
        second_prompts=None if second is None else second.repeated(len(responses)).lists(),
    )  # fmt: skip
    keys = None if rows_B is None else rows_B.tolist()
    return record_of(policy, seed, prompts, responses, seen, keys=keys, ignored=ignored)


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
