"""Rows of logits in descending order, as columns: what the differentiable form of a truncation reads.

A column stands for one token, or, far from the top, for a group of tokens that follow each other; all of a group count as equal.
"""

from typing import NamedTuple

import torch
from torch import Tensor

GAP = 1e6  # nats below the best token at which removed tokens stand: a gradient through -inf would be NaN


class Columns(NamedTuple):
    """N rows of C columns.

    Attributes:
        logit_NC: descending, finite.
        count_C: how many tokens each column stands for, in the same dtype; None: one each.
    """

    logit_NC: Tensor
    count_C: Tensor | None = None

    @classmethod
    def of(cls, logits_NV: Tensor) -> "Columns":
        """Whole rows: a column for each token."""
        sorted_NV = logits_NV.sort(-1, descending=True).values
        return cls(sorted_NV.clamp(min=sorted_NV[:, :1] - GAP))

    @property
    def logp_NC(self) -> Tensor:
        """The log-probability of one token of each column (nats)."""
        return self.logit_NC - self.log_mass_NC.logsumexp(-1, keepdim=True)

    @property
    def log_mass_NC(self) -> Tensor:
        """The logit of each column as a whole."""
        return self.logit_NC if self.count_C is None else self.logit_NC + self.count_C.log()

    @property
    def mass_NC(self) -> Tensor:
        """The probability of each column as a whole."""
        return self.log_mass_NC.softmax(-1)

    @property
    def before_NC(self) -> Tensor:
        """The probability of all tokens before a column; of a group, before its middle token."""
        mass_NC = self.mass_NC
        own = 1.0 if self.count_C is None else (self.count_C + 1) / (2 * self.count_C)
        return mass_NC.cumsum(-1) - mass_NC * own

    @property
    def counts_C(self) -> Tensor:
        """(C,) how many tokens each column stands for."""
        return torch.ones_like(self.logit_NC[0]) if self.count_C is None else self.count_C
