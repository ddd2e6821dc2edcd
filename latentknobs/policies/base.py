"""The contract of a policy: what chooses the knob values while decoding.

A policy is frozen: whatever it remembers of a response is in a `state` that the engine carries from token to token. At each
segment it reads an observation of the frozen LM and returns a choice. Policies that choose among the options of their space
share `CategoricalPolicy`; rules and continuous policies return any values within the ranges of the knobs.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.context import Observation
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies.digest import digest

State = Any  # None, a tensor, or a NamedTuple of states; the first dimension of every tensor is the row


class Choice(NamedTuple):
    """What a policy chose for N rows.

    Attributes:
        value_NJ: (N, J) values of the space's knobs, in its order: any numbers within the ranges of the knobs.
        option_N: (N,) index in the space, where the values come from its grid; None elsewhere.
        log_prob_N: (N,) log-probability (nats) or log-density of what was drawn, where anything was.
        state: what the policy remembers from here on; None leaves its state as it is.
    """

    value_NJ: Tensor
    option_N: Tensor | None = None
    log_prob_N: Tensor | None = None
    state: State = None


class Policy(ABC):
    """Chooses knob values for every segment.

    Attributes:
        space: the knobs whose values are chosen, in the order in which they act; for a categorical policy, also the options.
        segmenter: where a new choice begins.
        needs: parts of an `Observation` that it reads beside `hidden_ND` and `logits_NV`.
        draws: whether a choice depends on its uniform.
    """

    space: KnobSpace
    segmenter: Segmenter
    needs: tuple[str, ...] = ()
    draws: bool = True

    def start(self, rows: int, device: torch.device | str = "cpu") -> State:
        """The state of some rows before their first token; None for a policy that remembers nothing."""
        return None

    @abstractmethod
    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """The choice for N tokens to come, each row by itself.

        A policy without state is called where segments begin. One with a state is called at every token, so that what it
        remembers of a row does not depend on the other rows; between the beginnings of segments only `Choice.state` counts.

        Args:
            uniform_N: (N,) float64 in [0, 1), the only source of chance.
            state: of these rows.
        """

    def observe(self, token_N: Tensor, state: State) -> State:
        """The state after the tokens (N,) that followed the newest choice. Rows that have ended go on with padding."""
        return state

    def select(self, row_R: Tensor, state: State) -> State:
        """The state of R of the rows, in this order: rows leave their batch, and beams are reordered."""
        return select_rows(row_R, state)

    def log_pi(self, seen: Observation, state: State = None) -> Tensor | None:
        """(N, K) log-probabilities of the options, from a policy that chooses among them; None from any other."""
        return None

    def move_to(self, device: torch.device | str) -> None:
        """Moves its modules, the policy itself if it is one, to where a model gives its hidden states."""
        for part in (self, *vars(self).values()):
            if isinstance(part, nn.Module):
                part.to(device)
            elif isinstance(part, Policy) and part is not self:
                part.move_to(device)

    def identity(self) -> str:
        """64 hex digits; two policies with one identity choose the same.

        By default a digest of the class and of the content of every public attribute: plain values, tensors, modules, spaces,
        segmenters and other policies.

        Raises:
            TypeError: an attribute is of another kind; override `identity` then.
        """
        return digest(self)


def reads(policy: Policy) -> tuple[str, ...]:
    """All parts of an `Observation` that decoding with a policy needs: its own, and those of its knobs."""
    return tuple(dict.fromkeys((*policy.needs, *policy.space.needs)))


def remembers(policy: Policy) -> bool:
    """Whether a policy carries a state from token to token."""
    return policy.start(1) is not None


def select_rows(row_R: Tensor, state: State) -> State:
    """Rows of a state: None, a tensor with leading row dimension, or a tuple of states."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.index_select(0, row_R.to(state.device))
    if isinstance(state, tuple):
        parts = [select_rows(row_R, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    raise TypeError(f"The rows of a state of type {type(state).__name__} cannot be selected: override `select` of its policy.")
