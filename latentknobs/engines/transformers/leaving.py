"""Sampling a batch whose rows leave it when they have finished, so that short responses do not wait for long ones.

`generate` keeps its loop. A stopping criterion ends its call as soon as enough rows have finished, and another call goes on
with the rest: their ids, their part of the cache and of what was chosen. All rows of a batch stand at the same position, and
uniforms are keyed by row and position, so tokens and options are those of a single call: up to the rounding of a matrix product
with another number of rows, and for models in which a row does not depend on the other rows of its batch.

Everything stays in one call, which is always right, where rows cannot leave:

* `generate` draws the tokens itself (`sampler="transformers"`): rows share its random state;
* the cache is not a plain `DynamicCache`: static, quantized, offloaded, a state (Mamba and hybrids), none at all;
* the generation config has no end-of-sequence token.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from latentknobs.engines.transformers.attach import Attached
from latentknobs.engines.transformers.caches import cache_in, cache_name
from latentknobs.engines.transformers.prompt_reader import can_repeat
from latentknobs.engines.transformers.record import stop_ids
from latentknobs.engines.transformers.second import LeftPadded
from latentknobs.engines.transformers.settings import rollout_settings

SHARE = 0.25  # of a batch that must have finished: a call costs a few steps to start, and copies the cache
EVERY = 4  # steps between two looks, for which the host waits for a GPU


class Enough(StoppingCriteria):
    """Ends a call of `generate` when enough rows have an end token `stop_E` behind their prompt, and the rest can go on.

    `is_met` says whether it has ended the newest call.
    """

    def __init__(self, attached: Attached, stop_E: Tensor, prompt_length: int) -> None:
        self.attached, self.stop_E, self.prompt_length = attached, stop_E, prompt_length
        self.is_met = False
        self._go_on_B = torch.zeros(0, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) all True or all False."""
        position, rows = input_ids.shape[1] - self.prompt_length, len(input_ids)
        self.is_met = position % EVERY == 0 and rows_can_leave(self.attached) and self._is_enough(input_ids)
        if len(self._go_on_B) != rows:
            self._go_on_B = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        return torch.ones_like(self._go_on_B) if self.is_met else self._go_on_B

    def _is_enough(self, ids_BL: Tensor) -> bool:
        finished = int(finished_rows(ids_BL[:, self.prompt_length :], self.stop_E).sum())
        return finished >= SHARE * len(ids_BL) and finished < len(ids_BL)


def sample_leaving(
    attached: Attached, prompts: LeftPadded, second: LeftPadded | None, *, max_new_tokens: int, pad: int,
    past: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """A `generate` of an attached model in which finished rows leave the batch.

    Args:
        second: what second logits are read after, if not the last tokens.
        pad: id of the padding behind finished rows.
        past: the argument that holds the cache of prompts that were read before (`PromptReader.read`), if any.

    Returns:
        (B, T) tokens, (B, T, J) values and (B, T) options, if any; beyond a row's end they mean nothing.
    """
    with rollout_settings(attached.model):
        return _sample(attached, prompts, second, max_new_tokens, pad, past or {})


def _sample(
    attached: Attached, prompts: LeftPadded, second: LeftPadded | None, max_new_tokens: int, pad: int, past: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None]:
    model, (ids_RL, mask_RL) = attached.model, prompts
    assert mask_RL is not None
    B, P = ids_RL.shape
    token_BT = torch.full((B, max_new_tokens), pad, dtype=torch.long)
    value_BTJ = torch.zeros(B, max_new_tokens, len(attached.policy.space.knobs), dtype=torch.float64)
    option_BT: Tensor | None = None
    stop_E = torch.tensor(stop_ids(model.generation_config), dtype=torch.long, device=ids_RL.device)
    enough = Enough(attached, stop_E, P)
    arguments = {**past, **({"stopping_criteria": [enough]} if len(stop_E) else {})}
    first = {} if second is None else {"negative_prompt_ids": second.ids_BP, "negative_prompt_attention_mask": second.mask_BP}
    row_R = torch.arange(B)
    while True:
        output = model.generate(
            input_ids=ids_RL, attention_mask=mask_RL, max_new_tokens=P + max_new_tokens - ids_RL.shape[1], pad_token_id=pad,
            return_dict_in_generate=True, **arguments, **first,
        )  # fmt: skip
        first = {}  # it goes with the rows
        ids_RL, T = output.sequences, output.sequences.shape[1] - P
        token_BT[row_R, :T] = ids_RL[:, P:].cpu()
        value_BTJ[row_R, :T] = attached.value_BTJ[:, :T].cpu()
        if attached.ledger is not None and attached.ledger.option_BL is not None:
            option_BT = torch.zeros_like(token_BT) if option_BT is None else option_BT
            option_BT[row_R, :T] = attached.option_BT[:, :T].cpu()
        if not enough.is_met or max_new_tokens == T:
            return token_BT[:, :T], value_BTJ[:, :T], None if option_BT is None else option_BT[:, :T]
        stay_Q = (~finished_rows(ids_RL[:, P:], stop_E)).nonzero().squeeze(-1).cpu()
        attached.go_on(stay_Q)
        arguments[cache_name(output) or ""] = cache = cache_in(output)
        cache.batch_select_indices(stay_Q)
        mask_RL = torch.nn.functional.pad(mask_RL, (0, ids_RL.shape[1] - mask_RL.shape[1]), value=1)
        row_R, ids_RL, mask_RL = row_R[stay_Q], ids_RL[stay_Q], mask_RL[stay_Q]


def rows_can_leave(attached: Attached) -> bool:
    """Whether rows can leave the `generate` that is running: the first two points above."""
    return attached.ledger is not None and attached.ledger.sampling and can_repeat(attached.ledger.cache)


def finished_rows(token_BT: Tensor, stop_E: Tensor) -> Tensor:
    """(B,) bool: which responses hold an end."""
    return torch.isin(token_BT, stop_E).any(-1)
