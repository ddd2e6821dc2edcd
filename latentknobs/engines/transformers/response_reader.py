"""Reading finished responses after one reading of each distinct prompt (`PromptReader`), whatever the number of its responses.

The slow twin is `frozen.read_responses`, which reads each response with its whole prompt.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latentknobs.engines.transformers.frozen import evaluating, read_responses, tapped
from latentknobs.engines.transformers.prompt_reader import PromptReader
from latentknobs.engines.transformers.second import LeftPadded
from latentknobs.engines.transformers.settings import announce

CLOSE = 0.1  # of a state's norm: rounding in bfloat16 is 0.02 of it, and wrong positions are about 1

Ids = Sequence[int]
Reading = tuple[Tensor, Tensor]


class ResponseReader:
    """Reads what `read_responses` reads.

    Prompts of different lengths are padded on the left, and not every model counts positions from its mask or from
    `position_ids`. So one row of the first padded batch is compared with the slow twin; where they differ, every response is
    read with its whole prompt from then on, and a warning says so.
    """

    def __init__(self, model: Any, prompts: PromptReader) -> None:
        self.model, self.prompts = model, prompts
        self._agrees: bool | None = None  # None: not compared yet

    @torch.no_grad()
    def read(self, prompts: Sequence[Ids], responses: Sequence[Ids], pad: int) -> Iterator[Reading]:
        """Of each row the hidden states (T, D) and logits (T, V) that its T tokens come from; `pad` is any id of the model."""
        inputs = LeftPadded.of(prompts, pad, self.prompts.device)
        assert inputs.mask_BP is not None
        if not _takes_positions(self.prompts.model):
            self._agrees = False
        with evaluating(self.model):
            cache = {} if self._agrees is False else self.prompts.read(inputs.ids_BP, inputs.mask_BP)
        if not cache:  # prompts of one token, or a cache that cannot be repeated
            yield from read_responses(self.model, prompts, responses)
            return
        found = self._after(cache, inputs.mask_BP, prompts, responses, pad)
        if self._agrees is None:
            self._agrees = self._compared(prompts, responses, found)
        yield from read_responses(self.model, prompts, responses) if self._agrees is False else found

    def _after(
        self, cache: dict[str, Any], mask_BP: Tensor, prompts: Sequence[Ids], responses: Sequence[Ids], pad: int
    ) -> list[Reading]:
        """The last token of each prompt and the response, behind the cache of the other tokens."""
        rows = [torch.tensor([*p[-1:], *r[:-1]], device=mask_BP.device) for p, r in zip(prompts, responses, strict=True)]
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad)  # on the right, where a causal model cannot see
        mask_BL = torch.nn.functional.pad(mask_BP, (0, ids_BT.shape[1] - 1), value=1)
        position_BT = (mask_BL.cumsum(-1) - 1)[:, -ids_BT.shape[1] :]
        with evaluating(self.model), tapped(self.model) as cell:
            output = self.model(input_ids=ids_BT, attention_mask=mask_BL, position_ids=position_BT, use_cache=True, **cache)
        return [(cell["hidden"][b, : len(response)], output.logits[b, : len(response)]) for b, response in enumerate(responses)]

    def _compared(self, prompts: Sequence[Ids], responses: Sequence[Ids], found: list[Reading]) -> bool | None:
        """Whether the most padded row is what it is alone; None where no row shows it."""
        longest = max(map(len, prompts))
        row = min((b for b, response in enumerate(responses) if response), key=lambda b: len(prompts[b]), default=None)
        if row is None or len(prompts[row]) == longest:
            return None
        ((alone_TD, _),) = read_responses(self.model, [prompts[row]], [responses[row]])
        if (found[row][0].float() - alone_TD.float()).norm() <= CLOSE * alone_TD.float().norm():
            return True
        announce(
            f"Each response is read with its whole prompt: {type(self.prompts.model).__name__} reads a prompt that is padded "
            "on the left otherwise than alone. Sample from such a model with batch_size=1."
        )
        return False


def _takes_positions(model: Any) -> bool:
    named = inspect.signature(model.forward).parameters
    return "position_ids" in named or any(one.kind is one.VAR_KEYWORD for one in named.values())
