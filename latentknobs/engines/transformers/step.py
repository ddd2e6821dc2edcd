"""What a policy does at one token: it chooses options where segments begin, and in plain sampling mode draws the tokens.

On a GPU a step is some hundred small operations, each of which takes the host longer to start than the GPU to do. With
`graphs`, policies of this package are replayed as one CUDA graph; third-party ones, whose `log_pi` may do anything, are not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentknobs.engines.transformers.inverse import draw
from latentknobs.engines.transformers.replay import Replay
from latentknobs.engines.transformers.sampler import finish_draw, first_draw
from latentknobs.heads.features import read_features
from latentknobs.heads.option_head import OptionHead
from latentknobs.knobs.context import Context
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.apply import ordered_tail
from latentknobs.likelihood.cut import Cut
from latentknobs.likelihood.host import HostCut
from latentknobs.likelihood.rows import host_sees
from latentknobs.policies import ConstantPolicy, HeadPolicy, Policy, UniformPolicy

REPLAYED = (HeadPolicy, UniformPolicy, ConstantPolicy)


class _Drawn(NamedTuple):
    option_B: Tensor
    token_B: Tensor
    cut: Cut | HostCut | None
    logits_BV: Tensor  # after the knobs that do not keep the order
    space: KnobSpace  # the others
    value_BJ: Tensor


class Stepper:
    """The steps of one policy.

    Args:
        graphs: replay steps on a GPU, with Triton kernels.

    Uniforms are (2, B): those of the options and those of the tokens. `fresh` says which rows begin a segment: all, none, or
    those of a mask.
    """

    def __init__(self, policy: Policy, graphs: bool = False) -> None:
        self.policy, self.graphs = policy, graphs
        self._replays: dict[str, Replay] = {}
        self._made_from: Any = None
        self._values: Tensor | None = None
        self._head: Callable[[Tensor], Tensor] | None = None  # of this generation, where it pays to have it at hand

    def begin(self) -> None:
        """Before each generation: graphs hold addresses, so they go where the policy was changed or its weights have moved."""
        policy = self.policy
        head = getattr(policy, "head", None)
        tensors: tuple[Tensor, ...] = ()
        if isinstance(head, torch.nn.Module):  # a policy may call anything its head
            tensors = (*head.parameters(), *head.buffers())
        weights = tuple(part.data_ptr() for part in tensors)
        made_from = (policy.pick, policy.space, getattr(policy, "features", None), getattr(policy, "option", None), weights)
        if made_from != self._made_from:
            self._replays, self._made_from = {}, made_from
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
        """(B,) options and (B,) tokens; they may be overwritten by the next step. `again` gives uniforms for redraws of rows."""
        if type(self.policy).warp is not Policy.warp:  # a policy of its own kind
            option_B = self.choose(hidden_BD, logits_BV, uniform_2B, option_B, fresh)
            return option_B, draw(self.policy.warp(logits_BV, option_B), uniform_2B[1])
        if not self.graphs or context is not None or type(self.policy) not in REPLAYED or logits_BV.device.type != "cuda":
            drawn = self._draw(hidden_BD, logits_BV, uniform_2B, option_B, fresh, context)
        elif fresh is True:
            drawn = self._replay("all", lambda h, z, u: self._draw(h, z, u, u, True))(hidden_BD, logits_BV, uniform_2B)
        elif fresh is False:
            drawn = self._replay("none", lambda z, u, o: self._draw(z, z, u, o, False))(logits_BV, uniform_2B, option_B)
        else:
            drawn = self._replay("some", self._draw)(hidden_BD, logits_BV, uniform_2B, option_B, fresh)
        option_B, token_B, cut, logits_BV, space, value_BJ = drawn
        return option_B, finish_draw(token_B, cut, logits_BV, space, value_BJ, uniform_2B[1], again)

    def _draw(
        self, hidden_BD: Tensor, logits_BV: Tensor, uniform_2B: Tensor, option_B: Tensor, fresh: bool | Tensor,
        context: Context | None = None,
    ) -> _Drawn:  # fmt: skip
        """The part of a step that never asks the host, where no knob does."""
        option_B = self.choose(hidden_BD, logits_BV, uniform_2B, option_B, fresh)
        value_BJ = self._values_KJ(logits_BV.device).index_select(0, option_B)
        logits_BV, space, value_BJ = ordered_tail(logits_BV, self.policy.space, value_BJ, context)
        token_B, cut = first_draw(logits_BV, space, value_BJ, uniform_2B[1], self.graphs)
        if cut is not None:
            _ = cut.is_any_open  # part of the graph, although it is read later
        return _Drawn(option_B, token_B, cut, logits_BV, space, value_BJ)

    def _replay(self, name: str, function: Callable[..., _Drawn]) -> Replay:
        return self._replays.setdefault(name, Replay(function))

    def _values_KJ(self, device: torch.device) -> Tensor:
        if self._values is None or self._values.device != device:
            self._values = self.policy.space.values_KJ(device=device)
        return self._values
