"""What a policy does at one token: it chooses options where segments begin, and in plain sampling mode draws the tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

from latentknobs.engines.transformers.inverse import draw
from latentknobs.engines.transformers.sampler import finish_draw, first_draw
from latentknobs.heads.features import read_features
from latentknobs.heads.option_head import OptionHead
from latentknobs.knobs.context import Context
from latentknobs.likelihood.apply import ordered_tail
from latentknobs.policies import HeadPolicy, Policy
from latentknobs.tensors import host_sees


class Stepper:
    """The steps of one policy.

    Uniforms are (2, B): those of the options and those of the tokens. `fresh` says which rows begin a segment: all, none, or
    those of a mask.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._values: Tensor | None = None
        self._head: Callable[[Tensor], Tensor] | None = None  # of this generation, where it pays to have it at hand

    def begin(self) -> None:
        """Before each generation."""
        policy, head = self.policy, getattr(self.policy, "head", None)
        if type(policy) is HeadPolicy and isinstance(head, OptionHead) and host_sees(head.shift_F):
            self._head = head.for_few_rows()

    def end(self) -> None:
        """After each generation: from now on, weights may change."""
        self._head = None

    def choose(self, hidden_BD: Tensor, logits_BV: Tensor, uniform_2B: Tensor, option_B: Tensor, fresh: bool | Tensor) -> Tensor:
        """(B,) options: new ones in fresh rows, those of the token before in all others."""
        if fresh is False:
            return option_B
        policy = self.policy
        if self._head is not None and isinstance(policy, HeadPolicy):
            log_pi_BK = self._head(read_features(policy.features, hidden_BD, logits_BV))
        else:
            log_pi_BK = policy.log_pi(hidden_BD, logits_BV)
        drawn_B = policy.choose(log_pi_BK, uniform_2B[0])
        return drawn_B if fresh is True else torch.where(fresh, drawn_B, option_B)

    def sample(
        self, hidden_BD: Tensor, logits_BV: Tensor, uniform_2B: Tensor, option_B: Tensor, fresh: bool | Tensor,
        context: Context | None, again: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(B,) options and (B,) tokens. `again` gives uniforms for redraws of rows."""
        if type(self.policy).warp is not Policy.warp:  # a policy of its own kind
            option_B = self.choose(hidden_BD, logits_BV, uniform_2B, option_B, fresh)
            return option_B, draw(self.policy.warp(logits_BV, option_B), uniform_2B[1])
        option_B = self.choose(hidden_BD, logits_BV, uniform_2B, option_B, fresh)
        value_BJ = self._values_KJ(logits_BV.device).index_select(0, option_B)
        logits_BV, space, value_BJ = ordered_tail(logits_BV, self.policy.space, value_BJ, context)
        token_B, cut = first_draw(logits_BV, space, value_BJ, uniform_2B[1])
        return option_B, finish_draw(token_B, cut, logits_BV, space, value_BJ, uniform_2B[1], again)

    def _values_KJ(self, device: torch.device) -> Tensor:
        if self._values is None or self._values.device != device:
            self._values = self.policy.space.values_KJ(device=device)
        return self._values
