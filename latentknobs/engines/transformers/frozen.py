"""Reading a frozen LM: hidden states and logits of given tokens, and where the hidden state is tapped.

The tap is the input of the output embeddings. Logits are taken from the model's own output, because some families
rescale them after the output embeddings (Gemma 2 caps, Granite and Cohere scale).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from latentknobs.errors import AdapterError


def output_embeddings(model: Any) -> torch.nn.Module:
    """The module whose input is the last hidden state; AdapterError if there is none, so it is not a causal LM."""
    module = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if module is None:
        raise AdapterError(
            f"{type(model).__name__} has no output embeddings. latentknobs needs a causal LM, "
            "e.g. AutoModelForCausalLM.from_pretrained(...)."
        )
    found: torch.nn.Module = module
    return found


def hidden_size(model: Any) -> int:
    """D, the width of the state that a head reads."""
    weight_VD = output_embeddings(model).weight
    assert isinstance(weight_VD, Tensor)
    return weight_VD.shape[1]


def input_device(model: Any) -> torch.device:
    """Where token ids belong: with the input embeddings, which a device map may keep elsewhere than the last layers."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)  # accelerate's: weights that are offloaded are on no device until used
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else embeddings.weight.device


def padding_id(model: Any, tokenizer: Any) -> int:
    """An id to pad with. It is masked, so any will do that the model has an embedding for, as not every tokenizer's own."""
    known = range(model.get_input_embeddings().weight.shape[0])
    own = () if tokenizer is None else (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in own if token in known), 0)


def context_length(model: Any) -> int | None:
    """Most tokens that prompt and response may have together, where the model's config says so."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if value := getattr(config, name, None):
            return int(value)
    return None


@contextmanager
def tapped(model: Any) -> Iterator[dict[str, Tensor]]:
    """A cell whose `hidden` is the newest input of the output embeddings, (B, S, D), on the device of the token ids."""
    cell: dict[str, Tensor] = {}
    device = input_device(model)

    def keep(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        cell["hidden"] = args[0].detach().to(device)  # where a split model also returns its logits

    handle = output_embeddings(model).register_forward_pre_hook(keep)
    try:
        yield cell
    finally:
        handle.remove()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within the block the model does not drop out; afterwards its parts train as before."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@torch.no_grad()
def read_responses(
    model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each row, the hidden states (T, D) and logits (T, V) from which its T response tokens were sampled.

    Rows are padded on the right, where a causal model cannot see, so that every row is read as if alone. Rows are
    yielded in order; pass as many as one forward pass may hold.
    """
    device = input_device(model)
    rows = [torch.tensor([*p, *r], device=device) for p, r in zip(prompts, responses, strict=True)]
    ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask_BL = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with evaluating(model), tapped(model) as cell:
        logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
    for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        span = slice(len(prompt) - 1, len(prompt) - 1 + len(response))
        yield cell["hidden"][b, span], logits_BLV[b, span]
