"""Sampling a batch whose rows leave it when they have finished, so that short responses do not wait for long ones.

`generate` keeps its loop; a stopping criterion ends its call as soon as enough rows have finished, and another call goes on with the
others, their part of the cache and of what was chosen. All rows of a batch stand at the same position, and uniforms are keyed by
row and position, so tokens and options are those of a single call (up to the rounding of a matrix product for another number
of rows, and for models in which a row does not depend on the other rows of its batch).

Everything stays in one call, which is always right, where rows cannot leave:

* `generate` draws the tokens itself (a generation config with penalties, `sampler="transformers"`): its random state is shared by rows;
* the policy says that it `keeps_rows`;
* the cache is not a plain `DynamicCache` on its device: static, quantized, offloaded, states of Mamba and hybrids, none at all;
* the generation config has settings that count from the beginning of a call (`max_time`, `token_healing`), or no end-of-sequence token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from latentknobs.decoding.attach import Attached

SHARE = 0.25  # of a batch that must have finished: a call costs a few steps to start, and copies the cache
EVERY = 4  # steps between two looks, which a GPU has to wait for
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)  # exactly these: subclasses hold more than keys and values


class Enough(StoppingCriteria):
    """Ends a call of `generate` when enough rows have finished and the rest can go on.

    Args:
        stop_E: (E) end-of-sequence tokens.
        prompt_length: columns of the prompt.

    Attributes:
        is_met: whether it has ended the newest call.
    """

    def __init__(self, attached: Attached, stop_E: Tensor, prompt_length: int) -> None:
        self.attached, self.stop_E, self.prompt_length = attached, stop_E, prompt_length
        self.is_met = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(B,) all True or all False."""
        position = input_ids.shape[1] - self.prompt_length
        self.is_met = position % EVERY == 0 and rows_can_leave(self.attached) and self._is_enough(input_ids)
        return torch.full((len(input_ids),), self.is_met, device=input_ids.device)

    def _is_enough(self, ids_BL: Tensor) -> bool:
        finished = int(finished_rows(ids_BL[:, self.prompt_length :], self.stop_E).sum())
        return SHARE * len(ids_BL) <= finished < len(ids_BL)


def sample_leaving(attached: Attached, ids_BP: Tensor, mask_BP: Tensor, *, max_new_tokens: int, pad: int) -> tuple[Tensor, Tensor]:
    """One `generate` of an attached model, in which finished rows leave the batch.

    Args:
        ids_BP: (B, P) prompts, padded on the left.
        mask_BP: (B, P) 1 at real tokens.
        pad: id of the padding behind finished rows.

    Returns:
        (B, T) tokens and (B, T) options of the responses, T at most `max_new_tokens`; beyond a row's end both mean nothing.
    """
    model, (B, P), device = attached.model, ids_BP.shape, ids_BP.device
    token_BT = torch.full((B, max_new_tokens), pad, dtype=torch.long)
    option_BT = torch.zeros(B, max_new_tokens, dtype=torch.long)
    stop_E = stop_tokens(model).to(device)
    enough = Enough(attached, stop_E, P)
    told: dict[str, Any] = {"stopping_criteria": [enough]} if _may_resume(model) and len(stop_E) else {}
    row_R, ids_RL, mask_RL = torch.arange(B), ids_BP, mask_BP
    while True:
        left = P + max_new_tokens - ids_RL.shape[1]
        made = model.generate(
            input_ids=ids_RL, attention_mask=mask_RL, max_new_tokens=left, pad_token_id=pad, return_dict_in_generate=True, **told
        )
        ids_RL, T = made.sequences, made.sequences.shape[1] - P
        token_BT[row_R, :T] = ids_RL[:, P:].cpu()
        option_BT[row_R, :T] = attached.option_BT[:, :T].cpu()
        if not enough.is_met or left == 0 or T == max_new_tokens:
            return token_BT[:, : max(T, 0)], option_BT[:, :T]
        stay_Q = (~finished_rows(ids_RL[:, P:], stop_E)).nonzero().squeeze(-1).cpu()
        attached.go_on(stay_Q)
        cache = told["past_key_values"] = made.past_key_values
        cache.batch_select_indices(stay_Q)
        grown_RL = torch.nn.functional.pad(mask_RL, (0, ids_RL.shape[1] - mask_RL.shape[1]), value=1)
        row_R, ids_RL, mask_RL = row_R[stay_Q], ids_RL[stay_Q], grown_RL[stay_Q]


def rows_can_leave(attached: Attached) -> bool:
    """Whether rows can leave the `generate` that is running: see the list above."""
    cache = attached.cache
    return (
        attached.is_sampling
        and not attached.policy.keeps_rows
        and type(cache) is DynamicCache
        and not getattr(cache, "offloading", False)
        and all(type(layer) in LAYERS for layer in cache.layers)
    )


def stop_tokens(model: Any) -> Tensor:
    """(E) the tokens that end a response."""
    ends = model.generation_config.eos_token_id
    return torch.tensor(ends if isinstance(ends, list) else [] if ends is None else [ends], dtype=torch.long)


def finished_rows(token_BT: Tensor, stop_E: Tensor) -> Tensor:
    """(B,) bool: which responses hold an end."""
    return torch.isin(token_BT, stop_E).any(-1)


def _may_resume(model: Any) -> bool:
    config = model.generation_config
    return getattr(config, "max_time", None) is None and not getattr(config, "token_healing", False)
