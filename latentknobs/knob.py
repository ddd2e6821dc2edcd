"""The contract a plugin author reads: what a decoding knob is, and the two shortcuts that make most knobs a few lines.

A knob is a frozen pydantic model with five things to know: `name`, `stage`, `neutral`, `options`, `apply`.
`ScalingKnob` and `TruncationKnob` derive `apply`, so that their authors write one small method instead.
What this file ignores: how several knobs are combined (`space.py`) and what is done with the result (`likelihood/`).
"""

import math
from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from torch import Tensor

from latentknobs.errors import GridError

API_VERSION = 1


class Stage(StrEnum):
    """Where in a sampler chain a knob acts. Engines differ in the order of these stages (see `latentknobs.space.ORDERS`)."""

    CONTEXT = "context"  # rewrites logits from what came before: penalties, guidance
    SCALE = "scale"  # divides logits: temperature
    RANK = "rank"  # cuts by rank or by the raw logits: top-k
    MASS = "mass"  # cuts by cumulative probability: top-p
    THRESHOLD = "threshold"  # cuts below a probability: min-p
    SHAPE = "shape"  # anything else that reads the whole distribution: locally typical


class DecodingKnob(BaseModel, ABC):
    """One decoding hyperparameter with a small grid of values to choose from.

    Class variables:
        name: unique, lower_snake_case; what users write in `knobs=[...]`.
        stage: where it acts in a chain.
        neutral: the value that changes nothing.
        api_version: version of this contract the knob was written for.

    Field:
        options: the grid; finite, unique, ascending. Narrow the range with pydantic annotations,
            e.g. `options: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.5, 1.0)`.

    Raises:
        GridError: on construction with a bad grid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    stage: ClassVar[Stage]
    neutral: ClassVar[float]
    api_version: ClassVar[int] = API_VERSION

    options: tuple[float, ...]

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            what = "; ".join(_explain(item) for item in error.errors())
            given = data.get("options", data)
            raise GridError(f"The grid {_show(given)} does not fit the knob {self.name!r}: {what}.") from None

    @field_validator("options", mode="before")
    @classmethod
    def _listed(cls, options: Any) -> Any:
        return (options,) if isinstance(options, int | float) else options

    @field_validator("options")
    @classmethod
    def _ordered(cls, options: tuple[float, ...]) -> tuple[float, ...]:
        if not options:
            raise ValueError("it is empty; give at least one value")
        if not all(math.isfinite(value) for value in options):
            raise ValueError("every value must be finite")
        if len(set(options)) < len(options):
            raise ValueError(f"values repeat; write {_show(sorted(set(options)))}")
        if list(options) != sorted(options):
            raise ValueError(f"values must ascend; write {_show(sorted(options))}")
        return options

    @abstractmethod
    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """The definition of the knob: logits of the changed distribution.

        Pure and row-wise: row n is changed by `value_N[n]` alone, -inf stays -inf, no row is emptied, and the
        neutral value returns the row unchanged.

        Args:
            logits_NV: (N, V) floating point, unnormalised log-probabilities, possibly with -inf.
            value_N: (N,) values, of the same dtype and device.

        Returns:
            (N, V) logits, -inf for removed tokens.
        """


class ScalingKnob(DecodingKnob):
    """A knob that divides logits by a temperature which its value determines. Temperature 0 means argmax."""

    stage: ClassVar[Stage] = Stage.SCALE

    @abstractmethod
    def temperature(self, value_N: Tensor) -> Tensor:
        """(N,) the temperature >= 0 that each value stands for; 0 puts all mass on the first argmax."""

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """Logits over temperature; rows at temperature 0 keep their first argmax alone."""
        temperature_N1 = self.temperature(value_N).unsqueeze(-1)
        is_greedy_N1 = temperature_N1 == 0
        scaled_NV = logits_NV / torch.where(is_greedy_N1, 1.0, temperature_N1).to(logits_NV.dtype)
        if not is_greedy_N1.any():
            return scaled_NV
        greedy_NV = torch.full_like(logits_NV, -torch.inf)
        first_N1 = logits_NV.argmax(-1, keepdim=True)
        greedy_NV.scatter_(-1, first_N1, logits_NV.gather(-1, first_N1))
        return torch.where(is_greedy_N1, greedy_NV, scaled_NV)


class TruncationKnob(DecodingKnob):
    """A knob that keeps the most probable tokens and removes the rest: a prefix of the descending order.

    Ties: tokens whose logits equal the last kept one are kept too, so that a cut never depends on how equal
    numbers happen to be sorted. Loss and decoder share this rule because they share this method.
    """

    @abstractmethod
    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """How many leading tokens each row keeps.

        Args:
            sorted_NV: (N, V) logits in descending order, after the knobs that act before this one
                (removed tokens are -inf, at the end).
            value_N: (N,) values; rows at the neutral value are ignored by the caller.

        Returns:
            (N,) integer counts; the caller clamps them to 1..V.
        """

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """Logits with everything beyond the kept prefix (and its ties) at -inf; neutral rows are untouched."""
        sorted_NV = logits_NV.sort(-1, descending=True).values
        last_N1 = self.kept(sorted_NV, value_N).long().clamp(1, logits_NV.shape[-1]).unsqueeze(-1) - 1
        lowest_N1 = sorted_NV.gather(-1, last_N1)
        keep_NV = (logits_NV >= lowest_N1) | (value_N == self.neutral).unsqueeze(-1)
        return logits_NV.masked_fill(~keep_NV, -torch.inf)


def _explain(item: Any) -> str:
    """One pydantic complaint in the user's words: which value, and what is wrong with it."""
    cause = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"there is no setting {item['loc'][0]!r}"
    shown = f"value {item['input']!r}: " if len(item["loc"]) > 1 else ""
    return shown + cause[:1].lower() + cause[1:]


def _show(values: Any) -> str:
    """A grid as the user would write it; anything else as Python shows it."""
    if not isinstance(values, list | tuple):
        return repr(values)
    return "[" + ", ".join(f"{v:g}" if isinstance(v, int | float) else repr(v) for v in values) + "]"
