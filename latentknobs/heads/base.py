"""The contract of a head: a trained module that reads features of an observation, and that an adapter can hold.

A head is saved as its weights and its shape, a few settings from which an equal one is built. Its `kind` is the name of an entry
point in the group `latentknobs.heads`, so that an outside learner can bring a head of its own; how it chooses values while
decoding is said by `latentknobs.policies.heads.head_policy`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from latentknobs.knobs.space import KnobSpace


class Shape(BaseModel):
    """Settings from which a head is built; each kind adds its own."""

    model_config = ConfigDict(strict=True)


class Head(nn.Module, ABC):
    """A head for the knobs of a space that reads F features.

    Class variables:
        kind: the name of its entry point.
        Shape: what is saved of it beside its weights.

    Buffers `shift_F` and `scale_F` standardise the features; `fit_scaler` sets them from data.
    """

    kind: ClassVar[str]
    Shape: ClassVar[type[Shape]]
    shift_F: Tensor
    scale_F: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.register_buffer("shift_F", torch.zeros(in_features))
        self.register_buffer("scale_F", torch.ones(in_features))

    def fit_scaler(self, mean_F: Tensor, std_F: Tensor) -> None:
        """Standardises features of this mean and standard deviation; a constant one is ignored: its scale is infinite."""
        self.shift_F.copy_(mean_F)
        self.scale_F.copy_(torch.where(std_F > 1e-6, std_F, torch.inf))

    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """The fields of its `Shape`."""

    @classmethod
    @abstractmethod
    def of_shape(cls, space: KnobSpace, in_features: int, shape: Any) -> "Head":
        """An untrained head of a shape (an instance of `Shape`)."""
