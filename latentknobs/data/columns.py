"""Columns of the feature store: what a learner keeps of every segment, beside the features of its first token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentknobs.data.rollouts import Rollout
from latentknobs.errors import ConfigError
from latentknobs.tensors import pick, segment_sum


@dataclass(frozen=True)
class Reading:
    """One response of T tokens as the frozen LM reads it, on the CPU.

    Attributes:
        rollout: its tokens and options.
        logits_TV: the LM's own logits at each token.
        logps_TK: log P(y_t | option k) in nats.
    """

    rollout: Rollout
    logits_TV: Tensor
    logps_TK: Tensor


@dataclass(frozen=True)
class Column:
    """A column, computed token by token and then segment by segment.

    Attributes:
        read: (T, ...) one row for each token of a response.
        reduce: `sum` over the tokens of a segment, the row of its `first` token, or `token`: each of them. With such a column the
            rows of the store are tokens instead of segments, each with the features of its segment's first token (`store_rows`).
    """

    read: Callable[[Reading], Tensor]
    reduce: Literal["sum", "first", "token"]

    def by_segment(self, reading: Reading, segment_T: Tensor, first_S: Tensor) -> Tensor:
        """(S, ...) one row for each row of the store, which a response's tokens belong to; `first_S` is where each begins."""
        value_T = self.read(reading).cpu()
        if self.reduce != "sum":
            return value_T[first_S]
        return segment_sum(value_T, segment_T, len(first_S))


def store_rows(columns: Mapping[str, Column], segment_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The S rows of one response of T tokens: its segments, or its tokens where a column is kept for each.

    Returns:
        (T,) the row of each token; (S,) the first token of each row; (S,) the token whose features decide about it.
    """
    first_S = segment_T.diff(prepend=segment_T.new_full((1,), -1)).nonzero().squeeze(-1)
    if all(column.reduce != "token" for column in columns.values()):
        return segment_T, first_S, first_S
    token_T = torch.arange(len(segment_T), device=segment_T.device)
    return token_T, token_T, first_S[segment_T]


def row_bytes(columns: Mapping[str, Column], K: int, V: int) -> int:
    """Size of one row of all columns but the features, for K options and V tokens."""
    nothing = Reading(Rollout(0, (0,), (0,), ""), torch.zeros(1, V), torch.zeros(1, K))
    return sum(column.read(nothing).nbytes for column in columns.values())


def _options(reading: Reading) -> Tensor:
    if reading.rollout.options is None:
        raise ConfigError(
            "The learner learns from the options that responses were sampled with, and the policy that sampled these chooses "
            "values without options. Choose another learner, or a policy that chooses from a grid."
        )
    return torch.tensor(reading.rollout.options)


def _base(reading: Reading) -> Tensor:
    ids_T = torch.tensor(reading.rollout.ids, device=reading.logits_TV.device)
    return pick(reading.logits_TV.float().log_softmax(-1), ids_T)


OPTION_LOGPS: Mapping[str, Column] = {"logps_NK": Column(lambda reading: reading.logps_TK, "sum")}
"""log P(segment | option k), in nats."""
SAMPLED_OPTION: Mapping[str, Column] = {"option_N": Column(_options, "first")}
"""The option that the segment was sampled with; -1 where it is unknown."""
BASE_LOGPS: Mapping[str, Column] = {"base_N": Column(_base, "sum")}
"""log P(segment) under the LM without knobs, in nats."""
MAX_PROB: Mapping[str, Column] = {"max_prob_N": Column(lambda reading: reading.logits_TV.float().softmax(-1).amax(-1), "first")}
"""The LM's own probability of the most probable token, at the segment's first one."""
ALL: Mapping[str, Column] = {**OPTION_LOGPS, **SAMPLED_OPTION, **BASE_LOGPS}
