"""Top-a sampling as a knob."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from latentknobs import Stage, TruncationKnob


class TopA(TruncationKnob):
    """Keeps tokens of probability >= a * (best probability) ** 2: the surer the model, the harder the cut (BlinkDL 2022)."""

    name: ClassVar[str] = "top_a"
    stage: ClassVar[Stage] = Stage.THRESHOLD
    neutral: ClassVar[float] = 0.0
    options: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.1, 0.3)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        p_NV = sorted_NV.softmax(-1)
        return (p_NV >= value_N.unsqueeze(-1) * p_NV[:, :1] ** 2).sum(-1)
