"""Reading finished responses after one reading of each distinct prompt (`PromptReader`), whatever the number of its responses.

The slow twin is `frozen.read_responses`, which reads each response with its whole prompt.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latentknobs.engines.transformers.frozen import evaluating, read_responses, tapped
from latentknobs.engines.transformers.prompt_reader import PromptReader
from latentknobs.engines.transformers.second import LeftPadded


@torch.no_grad()
def read_after_prompts(
    model: Any, reader: PromptReader, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `read_responses` yields: of each row the hidden states (T, D) and logits (T, V) that its T tokens come from."""
    inputs = LeftPadded.of(prompts, pad, reader.device)
    assert inputs.mask_BP is not None
    with evaluating(model):
        cache = reader.read(inputs.ids_BP, inputs.mask_BP)
    if not cache:  # prompts of one token, or a cache that cannot be repeated
        yield from read_responses(model, prompts, responses)
        return
    rows = [torch.tensor([*p[-1:], *r[:-1]], device=reader.device) for p, r in zip(prompts, responses, strict=True)]
    ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad)  # on the right, where a causal model cannot see
    mask_BL = torch.nn.functional.pad(inputs.mask_BP, (0, ids_BT.shape[1] - 1), value=1)
    position_BT = (mask_BL.cumsum(-1) - 1)[:, -ids_BT.shape[1] :]
    with evaluating(model), tapped(model) as cell:
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BL, position_ids=position_BT, use_cache=True, **cache).logits
    for b, response in enumerate(responses):
        yield cell["hidden"][b, : len(response)], logits_BTV[b, : len(response)]
