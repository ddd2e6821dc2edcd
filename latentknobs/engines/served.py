"""What engines share that sample in another program: `read` is done here, by transformers, on the same weights.

Two programs compute slightly different logits (kernels, number formats). `measure_drift` compares what the sampling engine
reported with what a reading gives.
"""

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from latentknobs.engines.base import Engine, Ids
from latentknobs.engines.transformers.engine import TransformersEngine
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood.apply import apply_values
from latentknobs.tensors import pick

TOO_FAR, TOO_MANY = 0.3, 0.05  # nats, and share of tokens; number formats and kernels stay far below both


class ServedEngine(Engine, ABC):
    """An engine that samples elsewhere and reads with transformers.

    Args:
        model: the LM that the other program runs, in this process.
        tokenizer: of the model.
    """

    drifts: ClassVar[bool] = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.tokenizer, self.reader = tokenizer, TransformersEngine(model, tokenizer)

    def read(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Engine.read`."""
        return self.reader.read(prompts, responses)

    @property
    def device(self) -> torch.device:
        """That of the model in this process."""
        return self.reader.device

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.reader.hidden_size

    @property
    def context_length(self) -> int | None:
        """From the model's config."""
        return self.reader.context_length


@dataclass(frozen=True)
class Drift:
    """How far what an engine reported of some tokens is from what a reading gives."""

    tokens: int  # how many there were
    outside: int  # those that the values they were drawn with exclude in the reading
    compared: int  # those with a reported log-probability that the reading does not exclude
    mean: float
    largest: float  # mean, largest: of the absolute differences (nats) between the two log-probabilities of these

    def __str__(self) -> str:
        facts = f"{self.outside:,} of {self.tokens:,} tokens are outside the kept set of a reading"
        if self.compared:
            facts += f"; log-probabilities differ from it by {self.mean:.2g} nats on average, {self.largest:.2g} at most"
        if self.mean > TOO_FAR or self.outside > TOO_MANY * self.tokens:
            facts += ". That is more than number formats explain: does the engine run the same weights?"
        return facts


class Drawn(Protocol):
    """A response or a rollout: its ids, its values, and its log-probabilities where they are known."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def values(self) -> tuple[tuple[float, ...], ...]: ...
    @property
    def logps(self) -> tuple[float, ...] | None: ...


@torch.no_grad()
def measure_drift(engine: Engine, space: KnobSpace, prompts: Sequence[Ids], responses: Sequence[Drawn]) -> Drift:
    """The drift over some responses that `engine` sampled with knobs of `space`."""
    differences, tokens, outside = [torch.zeros(0)], 0, 0
    for seen, row in zip(engine.observe(prompts, [row.ids for row in responses], space.needs), responses, strict=True):
        device = seen.logits_NV.device
        value_TJ, token_T = torch.tensor(row.values, dtype=torch.float64, device=device), torch.tensor(row.ids, device=device)
        drawn_T = pick(apply_values(seen.logits_NV, space, value_TJ, seen).log_softmax(-1), token_T)
        is_inside_T = drawn_T.isfinite()
        tokens, outside = tokens + len(token_T), outside + int((~is_inside_T).sum())
        if row.logps is not None:
            read_T = drawn_T if engine.logps == "drawn" else pick(seen.logits_NV.float().log_softmax(-1), token_T)
            differences.append((read_T.cpu() - torch.tensor(row.logps)).abs()[is_inside_T.cpu()])
    found = torch.cat(differences)
    mean, largest = (float(found.mean()), float(found.max())) if len(found) else (0.0, 0.0)
    return Drift(tokens, outside, len(found), mean, largest)
