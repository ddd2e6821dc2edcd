"""The stages that a setting affects, declared with it: `TrainConfig.digest` reads it for the stages' keys.

A section of the config enters the keys of some stages with all of its fields. A field that matters elsewhere says where:

    beta: Annotated[float, Enters("fit")] = 0.1

A field that says nothing is in the keys of all stages of its section: to forget it costs work, never a wrong result.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

Stage = Literal["rollouts", "examples", "features", "fit", "evaluation"]
T = TypeVar("T")


@dataclass(frozen=True, init=False)
class Enters:
    """The stages whose keys hold a field's value, in place of those of its section."""

    stages: tuple[Stage, ...]
    by_content: bool  # keys hold what the setting stands for instead of its text: a model's weights, the prompts, the reward

    def __init__(self, *stages: Stage, by_content: bool = False) -> None:
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "by_content", by_content)


Harmless = Annotated[T, Enters()]
"""Cannot change a result: where files go, what is watched, how much memory is used, on which device."""
ByContent = Annotated[T, Enters(by_content=True)]
"""Keys hold what the setting stands for."""
