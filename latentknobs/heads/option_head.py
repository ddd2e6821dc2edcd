"""The head: features of one position -> a categorical over the options of a space.

A 3-layer MLP with SiLU (arXiv 2411.09661, section 3.1; hidden width 2048 there). Its last layer starts at zero, so that
an untrained head is exactly the uniform distribution, which is also the reference of the first round.
"""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from latentknobs.heads.base import Head, Shape
from latentknobs.heads.features import BUDGETS
from latentknobs.knobs.space import KnobSpace

NARROW, WIDE = 16, 128  # least and largest default width of a head
RANK, MANY = 16, 2048  # default rank of a head, from MANY features on
CODE = 16  # width of both layers that encode budgets
SIZING = (NARROW, WIDE, RANK, MANY)


def head_shape(features: int, hidden: int | None = None, rank: int | None = None) -> tuple[int, int]:
    """Width and rank of a head (rank 0: no reducing layer), with defaults by the number of features.

    The cost of a head grows with its width as that of an LM does with its own, so the width is a quarter of the features, from
    16 to 128; wider was not better (docs/log.md). A few statistics alone get 128: what can be learned from one number
    is not linear in it, and costs nothing. From 2,048 features on, the first layer is nearly all of the cost: it gets rank 16.
    """
    hidden = hidden or (WIDE if features < NARROW else min(max(features // 4, NARROW), WIDE))
    rank = (RANK if features >= MANY else 0) if rank is None else rank
    return hidden, rank if rank < features else 0


class OptionShape(Shape):
    """The shape of an option head; adapters from before there was a rank do not name it."""

    hidden: Annotated[int, Field(ge=1, lt=2**31)]
    rank: Annotated[int, Field(ge=0, lt=2**31)] = 0
    factorised: bool
    budgets: Annotated[int, Field(ge=0, le=len(BUDGETS))] = 0


class OptionHead(Head):
    """log pi(option | features).

    Args:
        space: whose K options are chosen from.
        in_features: F, the number of features.
        hidden: width of both hidden layers; None: `head_shape` chooses.
        rank: width of a linear layer in front of the others, so that F times `hidden` weights become F times `rank`; 0, or no
            less than F: there is no such layer; None: `head_shape` chooses.
        factorised: one categorical per knob instead of one over all K options; for a subset of the product the joint
            is renormalised over the options that exist.
        budgets: how many of the features, the last ones, are budgets: two layers of their own encode them, and the code stands
            beside the other features (arXiv 2603.09065, section 4).
    """

    kind: ClassVar[str] = "option"
    Shape = OptionShape
    grid_KJ: Tensor

    def __init__(
        self, space: KnobSpace, in_features: int, hidden: int | None = None, factorised: bool = False, rank: int | None = None,
        budgets: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(in_features)
        self.budgets = budgets
        in_features += CODE - budgets if budgets else 0
        self.sizes = tuple(len(knob.options) for knob in space.knobs)
        self.factorised = factorised
        self.hidden, self.rank = hidden, rank = head_shape(in_features, hidden, rank)
        outputs = sum(self.sizes) if factorised else space.K
        seen = rank or in_features
        reduce = [nn.Linear(in_features, rank, bias=False)] if rank else []
        self.mlp = nn.Sequential(
            *reduce, nn.Linear(seen, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
        )
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.code = nn.Sequential(nn.Linear(budgets, CODE), nn.SiLU(), nn.Linear(CODE, CODE)) if budgets else None
        self.register_buffer("grid_KJ", torch.tensor(space.grid_KJ), persistent=False)

    def shape(self) -> dict[str, Any]:
        """See `OptionShape`."""
        return {"hidden": self.hidden, "rank": self.rank, "factorised": self.factorised, "budgets": self.budgets}

    @classmethod
    def of_shape(cls, space: KnobSpace, in_features: int, shape: OptionShape) -> "OptionHead":
        """An untrained head of a shape."""
        return cls(space, in_features, shape.hidden, shape.factorised, shape.rank, shape.budgets)

    def forward(self, feature_NF: Tensor) -> Tensor:
        """(..., F) features -> (..., K) log-probabilities of the options."""
        feature_NF = feature_NF.to(self.shift_F.dtype)
        if self.code is None:
            out = linear(feature_NF, *self._folded())
        else:
            plain_NF, budget_NF = ((feature_NF - self.shift_F) / self.scale_F).split(
                [self.in_features - self.budgets, self.budgets], -1
            )
            out = self.mlp[0](torch.cat([plain_NF, self.code(budget_NF)], -1))
        return self._log_pi(self.mlp[1:](out))

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weights and bias of the first layer for features that are not standardised: quicker than standardising every row."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        weight_HF = first.weight / self.scale_F
        shift_H = weight_HF @ self.shift_F
        return weight_HF, -shift_H if first.bias is None else first.bias - shift_H

    def _log_pi(self, out: Tensor) -> Tensor:
        if self.factorised:
            per_knob = [part.log_softmax(-1) for part in out.split(self.sizes, -1)]
            out = sum((part[..., self.grid_KJ[:, j]] for j, part in enumerate(per_knob)), out.new_zeros(()))
        return out.log_softmax(-1)
