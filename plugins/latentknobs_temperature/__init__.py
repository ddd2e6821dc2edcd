"""Temperature, the reference knob: the options and the meaning of arXiv 2411.09661, Eq. 2-3."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from latentknobs.knobs.knob import ScalingKnob


class Temperature(ScalingKnob):
    """Divides logits by the value; 0 is greedy. Default grid: the six temperatures of the paper's section 4.3."""

    name: ClassVar[str] = "temperature"
    neutral: ClassVar[float] = 1.0
    options: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

    def temperature(self, value_N: Tensor) -> Tensor:
        """(N,) the value itself."""
        return value_N
