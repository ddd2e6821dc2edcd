"""A head that gives values of knobs: any numbers within their ranges, not options of a grid.

One small network for each knob, in the order in which the knobs act. Each reads the features and the values before it (the
micro-dependency of arXiv 2510.26697), and, if `statistics`, those of a truncation also read four numbers about the distribution
that the values before it make. For temperature and top-p this is the architecture of that paper's released heads.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latentknobs.errors import ConfigError
from latentknobs.heads.base import Head, Shape
from latentknobs.heads.option_head import head_shape
from latentknobs.knobs.columns import Columns
from latentknobs.knobs.knob import DecodingKnob, ScalingKnob, TruncationKnob
from latentknobs.knobs.space import KnobSpace

STATISTICS = 4  # largest probability, entropy, variance, mass of the five best
EDGE = 0.05  # share of a range that a new head keeps from its ends, where a sigmoid hardly moves
TINY = 1e-8  # as in the published code
Ranges = tuple[tuple[float, float], ...]


class ValueShape(Shape):
    """The shape of a value head."""

    hidden: Annotated[int, Field(ge=1, lt=2**31)]
    ranges: Annotated[list[Annotated[list[float], Field(min_length=2, max_length=2)]], Field(min_length=1, max_length=64)]
    statistics: bool = False
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    cap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class ValueHead(Head):
    """Features -> values of the J knobs of a space.

    Args:
        space: whose knobs have values.
        in_features: F, the number of features.
        ranges: least and largest value of each knob; None: from its grid's first to its last option.
        hidden: width of each network; None: `head_shape` chooses.
        statistics: whether truncations read the statistics; `forward` then needs logits.
        cap, scale: of a family that caps or scales its logits (`scale * cap * tanh(z / cap)`): statistics are of z.

    Raises:
        ConfigError: a range is empty, or leaves that of its knob.
    """

    kind: ClassVar[str] = "value"
    Shape = ValueShape

    def __init__(
        self, space: KnobSpace, in_features: int, ranges: Ranges | None = None, hidden: int | None = None,
        statistics: bool = False, cap: float | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(in_features)
        self.space, self.statistics, self.cap, self.scale = space, statistics, cap, scale
        self.ranges = tuple((knob.options[0], knob.options[-1]) for knob in space.knobs) if ranges is None else ranges
        if len(self.ranges) != len(space.knobs):
            raise ConfigError(f"There are {len(self.ranges)} ranges for the {len(space.knobs)} knobs of {space!r}.")
        for knob, (low, high) in zip(space.knobs, self.ranges, strict=True):
            check_range(knob, low, high)
        self.hidden = hidden or head_shape(in_features)[0]
        self.nets = nn.ModuleList(self._net(j) for j in range(len(space.knobs)))

    def _net(self, j: int) -> nn.Sequential:
        """The network of one knob, which begins at the same value everywhere."""
        inputs = self.in_features + j + STATISTICS * self._reads_statistics(j)
        last = nn.Linear(self.hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, math.log((share := start(self.space.knobs[j], *self.ranges[j])) / (1 - share)))
        return nn.Sequential(nn.Linear(inputs, self.hidden), nn.ReLU(), last)

    def _reads_statistics(self, j: int) -> bool:
        return self.statistics and isinstance(self.space.knobs[j], TruncationKnob)

    def shape(self) -> dict[str, Any]:
        """See `ValueShape`."""
        dtype = str(next(self.nets.parameters()).dtype).removeprefix("torch.")
        return {"hidden": self.hidden, "ranges": [list(pair) for pair in self.ranges], "statistics": self.statistics,
                "dtype": dtype, "cap": self.cap, "scale": self.scale}  # fmt: skip

    @classmethod
    def of_shape(cls, space: KnobSpace, in_features: int, shape: ValueShape) -> "ValueHead":
        """An untrained head of a shape."""
        ranges = tuple((low, high) for low, high in shape.ranges)
        head = cls(space, in_features, ranges, shape.hidden, shape.statistics, shape.cap, shape.scale)
        return head.to(getattr(torch, shape.dtype))

    def forward(self, feature_NF: Tensor, columns: Columns | None = None) -> Tensor:
        """(N, F) features -> (N, J) values.

        Args:
            columns: the LM's logits, for a head with statistics; whole rows may be in any order.
        """
        feature_NF = feature_NF.to(self.shift_F.dtype)
        feature_NF = (feature_NF - self.shift_F) / self.scale_F
        values: list[Tensor] = []
        for j, (net, (low, high)) in enumerate(zip(self.nets, self.ranges, strict=True)):
            seen = [feature_NF, *(value_N1.detach() for value_N1 in values)]
            if self._reads_statistics(j):
                if columns is None:
                    raise ConfigError("This head reads statistics of the logits: pass them to `forward`.")
                seen.append(self._statistics(columns, values).to(feature_NF.dtype))
            values.append(low + (high - low) * net(torch.cat(seen, -1)).sigmoid())
        return torch.cat(values, -1)

    @torch.no_grad()
    def _statistics(self, columns: Columns, values: list[Tensor]) -> Tensor:
        """(N, 4) of softmax(z / (T + 1e-8)), T from the values before."""
        logit_NC, count_C = columns
        logit_NC = logit_NC / self.scale if self.scale != 1 else logit_NC
        if self.cap is not None:
            inside = 1 - torch.finfo(logit_NC.dtype).eps
            logit_NC = self.cap * (logit_NC / self.cap).clamp(-inside, inside).atanh()
        for knob, value_N1 in zip(self.space.knobs, values, strict=False):
            if isinstance(knob, ScalingKnob):
                logit_NC = logit_NC / (knob.temperature(value_N1.detach()) + TINY).to(logit_NC.dtype)
        if count_C is None:
            p_NC = logit_NC.softmax(-1)
            count_C, variance_N1 = torch.ones_like(p_NC[0]), p_NC.var(-1, keepdim=True)
        else:
            p_NC, total = Columns(logit_NC, count_C).logp_NC.exp(), count_C.sum()
            variance_N1 = ((count_C * p_NC.square()).sum(-1, keepdim=True) - 1 / total) / (total - 1)
        entropy_N1 = -(count_C * p_NC * (p_NC + TINY).log()).sum(-1, keepdim=True)
        top_N1 = p_NC.topk(min(5, p_NC.shape[-1]), -1).values.sum(-1, keepdim=True)
        return torch.cat([p_NC.amax(-1, keepdim=True), entropy_N1, variance_N1, top_N1], -1)


def check_range(knob: DecodingKnob, low: float, high: float) -> None:
    """Refuses a range without values, or with values that the knob does not allow: a ConfigError names both."""
    least, most = knob.value_range()
    if not low < high:
        raise ConfigError(
            f"The range of the knob {knob.name!r} is from {low:g} to {high:g}, which leaves nothing to choose. Give its grid a "
            f"least and a largest value, e.g. {knob.name}:0.5,1."
        )
    if low < min(least, max(0.0, least - TINY)) or high > most:
        raise ConfigError(
            f"The range of the knob {knob.name!r} is from {low:g} to {high:g}, but its values lie from {least:g} to {most:g}. "
            "Choose a range inside that."
        )


def start(knob: DecodingKnob, low: float, high: float) -> float:
    """The share of its range at which a new head begins: the neutral value, or near the end that cuts less."""
    share = (knob.neutral - low) / (high - low)
    if isinstance(knob, TruncationKnob) and not EDGE < share < 1 - EDGE:
        share = float(opens(knob, low, high))
    return min(max(share, EDGE), 1 - EDGE)


def opens(knob: DecodingKnob, low: float, high: float) -> bool:
    """Whether higher values of a knob within its range leave more to chance: a higher temperature, or fewer tokens cut."""
    ends_2 = torch.tensor([low + EDGE * (high - low), high - EDGE * (high - low)], device="cpu")
    if isinstance(knob, TruncationKnob):
        columns = Columns(torch.linspace(0, -10, 64, device="cpu").expand(2, -1))  # also where heads are built on no device
        few, many = (knob.excess(columns, ends_2) > 0).sum(-1).tolist()
        return bool(few > many)
    assert isinstance(knob, ScalingKnob)
    cold, hot = knob.temperature(ends_2).tolist()
    return bool(hot > cold)
