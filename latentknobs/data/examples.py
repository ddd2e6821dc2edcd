"""Examples: what one term of a learner's loss is about, and batches of them with the segments of their responses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from latentknobs.data.segment_batches import Features, Segments
from latentknobs.errors import NoExamplesError


@dataclass(frozen=True)
class Example:
    """Some responses to one prompt.

    Attributes:
        prompt: index of the prompt.
        responses: indices of the responses; the same number in every example of a learner, e.g. two to compare.
        weight: what the learner wants to remember of them, e.g. an advantage.
    """

    prompt: int
    responses: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Pair:
    """Indices of two rollouts of one prompt, of which `chosen` is preferred."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def example(self) -> Example:
        """The pair as a learner's example: chosen, then rejected."""
        return Example(self.prompt, (self.chosen, self.rejected))

    @classmethod
    def of(cls, example: Example) -> "Pair":
        """The pair of such an example."""
        return cls(example.prompt, *example.responses)


def drop_unreachable(examples: Sequence[Example], unreachable: set[int]) -> tuple[list[Example], str]:
    """The examples without responses that no option can produce, and a sentence about it; NoExamplesError if none is left."""
    kept = [example for example in examples if unreachable.isdisjoint(example.responses)]
    cure = "Add an option that truncates nothing (e.g. top_p 1), or set `floor`, e.g. floor=-20, to keep such examples."
    if not kept:
        raise NoExamplesError(
            f"Each of the {len(examples)} examples holds a token with probability 0 under every option, so there is "
            f"nothing to learn from. {cure}"
        )
    if len(kept) == len(examples):
        return kept, f"Every token of the {len(examples)} examples can be produced by an option."
    lost = len(examples) - len(kept)
    return kept, f"{lost} of {len(examples)} examples are left out: they hold a token that no option can produce. {cure}"


@dataclass(frozen=True)
class Batch:
    """B examples of X responses each, U different responses in all.

    Attributes:
        segments: of the U responses. A response that is in several examples is here once.
        place_XB: which of the U responses are the X-th of each example.
        weight_B: the weights of the examples, in float64.
    """

    segments: Segments
    place_XB: Tensor
    weight_B: Tensor

    @classmethod
    def read(cls, features: Features, examples: Sequence[Example], device: torch.device | str) -> "Batch":
        """The batch of some examples (at least one), on a device."""
        index_XB = rearrange(torch.tensor([example.responses for example in examples]), "b x -> x b")
        response_U, place_XB = index_XB.unique(return_inverse=True)
        weight_B = torch.tensor([example.weight for example in examples], dtype=torch.float64)
        return cls(features.segments(response_U).to(device), place_XB.to(device), weight_B.to(device))

    @property
    def times_M(self) -> Tensor:
        """(M,) in how many places of the examples each segment is."""
        times_U = torch.bincount(self.place_XB.flatten(), minlength=len(self.segments.length_U))
        return times_U.repeat_interleave(self.segments.length_U)
