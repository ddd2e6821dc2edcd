"""The contract a plugin author reads: what a decoding knob is, and the shortcuts that make most knobs a few lines.

A knob is a frozen pydantic model with five things to know: `name`, `stage`, `neutral`, `options`, `apply`.
`ScalingKnob` and `TruncationKnob` derive `apply`, so that their authors write one small method instead;
`ContextKnob` is for the few that read more than the logits.
What this file ignores: how several knobs are combined (`space.py`) and what is done with the result (`likelihood/`).
"""

import itertools
import math
from abc import ABC, abstractmethod
from enum import StrEnum
from functools import lru_cache
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from torch import Tensor

from latentknobs.errors import ConfigError, GridError
from latentknobs.knobs.columns import Columns
from latentknobs.knobs.context import Context, missing_part
from latentknobs.knobs.grid import check_ascending, explain, show
from latentknobs.tensors import any_or_unknown

API_VERSION = 1  # newest version of this contract; see `DecodingKnob.api_version`
OLDEST_API_VERSION = 1  # oldest one that still works
TINY = 1e-30  # temperatures below this count as 0: the quotients of ordinary logits would overflow
Sees = Literal["row", "mass", "prefix"]  # see `TruncationKnob.sees`


class Stage(StrEnum):
    """Where in a sampler chain a knob acts. Engines differ in the order of these stages (see `knobs.space.ORDERS`)."""

    CONTEXT = "context"  # rewrites logits from what came before: penalties, guidance
    SCALE = "scale"  # divides logits: temperature
    SPREAD = "spread"  # cuts by how spread out the whole row is: top-H, top-n-sigma
    RANK = "rank"  # cuts by rank: top-k
    MASS = "mass"  # cuts by cumulative probability: top-p
    THRESHOLD = "threshold"  # cuts below a probability relative to the row: min-p, p-less
    SHAPE = "shape"  # anything else that reads the whole distribution: locally typical
    TAIL = "tail"  # cuts below an absolute probability: epsilon, eta
    TOP = "top"  # removes the most probable tokens: XTC


class DecodingKnob(BaseModel, ABC):
    """One decoding hyperparameter with a small grid of values to choose from.

    Class variables:
        name: unique, lower_snake_case; what users write in `knobs=[...]`.
        stage: where it acts in a chain.
        neutral: the value that changes nothing.
        api_version: version of this contract the knob was written for. Default: 1.

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
    api_version: ClassVar[int] = 1

    options: tuple[float, ...]

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            what = "; ".join(explain(item) for item in error.errors())
            grid = data.get("options", data)
            raise GridError(f"The grid {show(grid)} does not fit the knob {self.name!r}: {what}.") from None

    @field_validator("options", mode="before")
    @classmethod
    def _listed(cls, options: Any) -> Any:
        grid = (options,) if isinstance(options, int | float) else options
        if isinstance(grid, list | tuple) and any(isinstance(value, bool) for value in grid):
            raise ValueError("true and false are not numbers")
        return grid

    @field_validator("options")
    @classmethod
    def _ordered(cls, options: tuple[float, ...]) -> tuple[float, ...]:
        return check_ascending(options)

    @classmethod
    def value_range(cls) -> tuple[float, float]:
        """The least and the largest finite value that the annotation of `options` allows; an excluded bound gives its neighbour
        in float32.
        """
        low, high = -math.inf, math.inf
        (item, *_) = get_args(cls.model_fields["options"].annotation)
        fields = getattr(item, "__metadata__", ())  # of an `Annotated[float, Field(ge=0)]`
        for bound in itertools.chain.from_iterable(getattr(field, "metadata", ()) for field in fields):
            low = max(low, getattr(bound, "ge", low), _after(getattr(bound, "gt", -math.inf), math.inf))
            high = min(high, getattr(bound, "le", high), _after(getattr(bound, "lt", math.inf), -math.inf))
        return low, high

    @abstractmethod
    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """The definition of the knob: logits of the changed distribution.

        Pure and row-wise: row n is changed by `value_N[n]` alone, -inf stays -inf and counts for nothing, no row is
        emptied, and the neutral value returns the row unchanged.

        Args:
            logits_NV: (N, V) floating point, unnormalised log-probabilities, possibly with -inf.
            value_N: (N,) values, of the same dtype and device.

        Returns:
            (N, V) logits of the same dtype, -inf for removed tokens.
        """

    def apply_in(self, logits_NV: Tensor, value_N: Tensor, context: Context | None = None) -> Tensor:
        """`apply`, for callers that walk a chain in which some knobs read a context. Authors leave it alone."""
        return self.apply(logits_NV, value_N)


def _after(bound: float, towards: float) -> float:
    return float(np.nextafter(np.float32(bound), np.float32(towards)))


class ScalingKnob(DecodingKnob):
    """A knob that divides logits by a temperature which its value determines. Temperature 0 means argmax."""

    stage: ClassVar[Stage] = Stage.SCALE

    @abstractmethod
    def temperature(self, value_N: Tensor) -> Tensor:
        """(N,) the temperature >= 0 that each value stands for; 0 puts all mass on the first argmax."""

    def divisor(self, value_N: Tensor) -> Tensor:
        """(N,) the temperature, 0 where it is too small to divide by."""
        return torch.nn.functional.threshold(self.temperature(value_N), TINY, 0.0)

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """Logits over temperature; rows at temperature 0 keep their first argmax alone."""
        temperature_N1 = self.divisor(value_N).unsqueeze(-1)
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

    Class variable:
        sees: an optional promise that makes tables faster. What `kept` depends on beyond its own cut:
            "row", everything (always safe); "mass", only the total mass of what follows, so that `kept` may be shown one
            last column of that mass instead; "prefix", nothing, so that `kept` may be shown only the beginning of the row.
            Either way, a count that reaches the end of what was shown means "here or further on".
    """

    sees: ClassVar[Sees] = "row"

    @abstractmethod
    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """How many leading tokens each row keeps.

        Args:
            sorted_NV: (N, V) logits in descending order, after the knobs that act before this one
                (removed tokens are -inf, at the end, and must not count).
            value_N: (N,) values; rows at the neutral value are ignored by the caller.

        Returns:
            (N,) integer counts; the caller clamps them to 1..V.
        """

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        """An optional second form, for learners that differentiate: how far each token lies beyond the cut.

        Positive for removed tokens, at most 0 for kept ones, ascending along a row, and differentiable in the value. Ties are
        the caller's concern. `kept` counts what is at most 0 here.

        Args:
            columns: (N, C) after the knobs that act before this one.
            value_N: (N,) values, none of them neutral.

        Returns:
            (N, C) in a unit of the knob's own, such as probability or nats.

        Raises:
            ConfigError: the knob does not define it.
        """
        raise ConfigError(
            f"The knob {self.name!r} has no differentiable form: its class does not define `excess`. Leave it out, or use a "
            "learner that chooses among options, e.g. lpo."
        )

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """Logits with everything beyond the kept prefix (and its ties) at -inf; neutral rows are untouched."""
        sorted_NV = logits_NV.sort(-1, descending=True).values
        last_N1 = self.kept(sorted_NV, value_N).long().clamp(1, logits_NV.shape[-1]).unsqueeze(-1) - 1
        lowest_N1 = sorted_NV.gather(-1, last_N1)
        keep_NV = (logits_NV >= lowest_N1) | (value_N == self.neutral).unsqueeze(-1)
        return logits_NV.masked_fill(~keep_NV, -torch.inf)


def extend_over_ties(sorted_NM: Tensor, count_NG: Tensor) -> Tensor:
    """(N, G) counts of leading tokens of descending rows, with the tokens that tie with the last one; at least 1, at most M.

    The rule of `TruncationKnob.apply` for callers that count tokens instead of removing them.
    """
    M = sorted_NM.shape[-1]
    count_NG = count_NG.clamp(1, M)
    last_NG, next_NG = sorted_NM.gather(-1, count_NG - 1), sorted_NM.gather(-1, count_NG.clamp(max=M - 1))
    if not any_or_unknown((last_NG == next_NG) & (count_NG < M)):
        return count_NG
    return torch.searchsorted(-sorted_NM, -last_NG, right=True)


class ContextKnob(DecodingKnob):
    """A knob that also reads what came before: a penalty on earlier tokens, a schedule over positions, guidance.

    Class variables:
        needs: the parts of `Context` that `apply_context` reads; it sees no others.
        knows_tokens: whether token ids mean something to it. Where they do not, tokens of equal logits come out equal, and
            renumbering the vocabulary renumbers the result.
    """

    stage: ClassVar[Stage] = Stage.CONTEXT
    needs: ClassVar[tuple[str, ...]]
    knows_tokens: ClassVar[bool] = False

    @property
    def hidden_size(self) -> int | None:
        """D of the only LMs that it can read the hidden states of; None: of any."""
        return None

    @abstractmethod
    def apply_context(self, logits_NV: Tensor, value_N: Tensor, context: Context) -> Tensor:
        """`apply` with the declared parts of the context; row n belongs to row n of each part."""

    def apply_in(self, logits_NV: Tensor, value_N: Tensor, context: Context | None = None) -> Tensor:
        """Hands over the declared parts; without any context, rows must be neutral.

        Raises:
            DecodingError: the caller did not supply one of them.
        """
        if context is None:
            return self.apply(logits_NV, value_N)
        return self.apply_context(logits_NV, value_N, context.only(self.needs, self.name))

    def apply(self, logits_NV: Tensor, value_N: Tensor) -> Tensor:
        """Accepts neutral rows only: they need no context.

        Raises:
            DecodingError: a row is not at the neutral value.
        """
        if (value_N != self.neutral).any():
            raise missing_part(self.name, self.needs[0])
        return logits_NV.clone()


def is_ordered(*knobs: DecodingKnob) -> bool:
    """Whether knobs keep the order of tokens: their `apply` is that of `ScalingKnob` or `TruncationKnob`."""
    return all(_keeps_order(type(knob)) for knob in knobs)


@lru_cache(maxsize=256)
def _keeps_order(kind: type[DecodingKnob]) -> bool:
    return kind.apply in (ScalingKnob.apply, TruncationKnob.apply) and kind.apply_in is DecodingKnob.apply_in
