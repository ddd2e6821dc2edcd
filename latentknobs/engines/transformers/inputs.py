"""What a caller passes to `generate` and `record`, refused in our words before torch or transformers fails on it.

Whatever else `generate` refuses before its first forward pass (an unknown cache, an argument that no model takes) is raised
again as a `DecodingError` that holds its words.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, get_args

import torch
from torch import Tensor

from latentknobs.engines.transformers import modes
from latentknobs.engines.transformers.settings import SamplingArguments
from latentknobs.errors import ConfigError, DecodingError, LatentKnobsError

COUNTS: dict[str, int | None] = {"max_new_tokens": None, "num_beams": 1, "num_return_sequences": 1}
UNDERNEATH = (ValueError, TypeError, AttributeError, AssertionError, ImportError, LookupError)


def check_attached(seed: Any, sampler: Any, sampling_arguments: Any) -> None:
    """Refuses settings of `Attached` that it does not know: a ConfigError names one."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ConfigError(f"seed={seed!r} is not a whole number. Give one, e.g. seed=0.")
    known: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "sampler": (sampler, get_args(modes.Sampler)),
        "sampling_arguments": (sampling_arguments, (*get_args(SamplingArguments), None)),
    }
    for name, (value, values) in known.items():
        if value not in values:
            raise ConfigError(f"{name}={value!r} is not known. Choose one of {', '.join(map(repr, values))}.")


def prompt_of(model: Any, kwargs: dict[str, Any], args: tuple[Any, ...]) -> Tensor | None:
    """(B, P) ids or (B, P, D) embeddings of a call, checked with their mask; None where `generate` begins by itself."""
    values = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args)
    prompt = next((value for value in values if value is not None), None)
    if prompt is not None and prompt is not values[0]:
        check_ids(model, prompt, "The prompt")
    if isinstance(prompt, Tensor):
        check_mask(kwargs.get("attention_mask"), *prompt.shape[:2])
    return prompt


def check_ids(model: Any, ids_BL: Any, called: str) -> None:
    """DecodingError if these are not (B, L) ids that the model can read, at least one."""
    if not isinstance(ids_BL, Tensor) or ids_BL.dim() != 2 or ids_BL.is_floating_point() or ids_BL.dtype == torch.bool:
        found = f"{ids_BL.dtype} {tuple(ids_BL.shape)}" if isinstance(ids_BL, Tensor) else f"a {type(ids_BL).__name__}"
        raise DecodingError(f"{called} is {found}, not a tensor (B, L) of token ids. Pass tokenizer(..., return_tensors='pt').")
    if not ids_BL.numel():
        raise DecodingError(f"{called} has shape {tuple(ids_BL.shape)}: there are no tokens to start from. Give at least one.")
    known, (low, high) = model.get_input_embeddings().weight.shape[0], (int(end) for end in ids_BL.aminmax())
    if not 0 <= low <= high < known:
        wrong = low if low < 0 else high
        raise DecodingError(f"{called} holds the id {wrong}, and the model has ids 0 to {known - 1}. Use its own tokenizer.")


def check_mask(mask_BP: Any, rows: int, columns: int) -> None:
    """DecodingError if an attention mask does not fit its prompts."""
    if mask_BP is not None and (not isinstance(mask_BP, Tensor) or tuple(mask_BP.shape) != (rows, columns)):
        found = tuple(mask_BP.shape) if isinstance(mask_BP, Tensor) else f"a {type(mask_BP).__name__}"
        raise DecodingError(f"attention_mask is {found}, and the prompt has {(rows, columns)}. Pass that of the same call.")


def check_sequences(model: Any, ids_BL: Any, prompt_length: int, mask_BP: Any) -> None:
    """DecodingError if these cannot be sequences that `generate` returned."""
    check_ids(model, ids_BL, "record(sequences)")
    if not 0 <= prompt_length <= ids_BL.shape[1]:
        columns = ids_BL.shape[1]
        raise DecodingError(f"prompt_length={prompt_length} does not fit sequences of {columns} columns. Give their prompts'.")
    check_mask(mask_BP, len(ids_BL), prompt_length)


def check_counts(values: dict[str, Any]) -> list[Any]:
    """The numbers of tokens, beams and responses; a DecodingError names one that is not a whole number from 1."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise DecodingError(f"generate({name}={value!r}): give a whole number from 1.")
    return list(values.values())


def budgets(budget: int | None, samples: int | None, tokens: int | None, copies: int) -> tuple[int | None, int]:
    """The token budget and the parallel budget that policies read: those that were set, or those of the call."""
    check_counts({"budget": budget, "samples": samples})
    return budget or tokens, samples or copies


def left_of(max_length: int | None, prompt: Tensor | None) -> int | None:
    """How many tokens `max_length` leaves a response; None where it is not set."""
    return None if max_length is None else max_length - (1 if prompt is None else prompt.shape[1])


@contextmanager
def in_our_words(has_begun: Callable[[], bool]) -> Iterator[None]:
    """Within the block, errors that come up before `has_begun()` are the caller's arguments."""
    try:
        yield
    except UNDERNEATH as error:
        if isinstance(error, LatentKnobsError) or has_begun():
            raise
        what = (" ".join(str(error).split())[:500] or type(error).__name__).rstrip(".")
        raise DecodingError(f"generate could not begin: {what}. Change that argument, or leave it out.") from error
