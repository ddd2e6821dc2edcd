"""Controls: policies derived from another one's choices, to find out what its gain comes from.

A policy may gain by the level of its choices, by their spread, or because each choice is at the right place. Only the last is
adaptation. `MeanShift` keeps the level; `Shuffle` keeps the choices and not their places; within bins, it also keeps what the
LM's own certainty says of a place (MeanShift, Shuffle and BinShuffle of "Token-Level Control or Just a Better Mean?", COLM 2026).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.heads.features import read_features
from latentknobs.heads.segmenters import Every, Segmenter, WholeResponse
from latentknobs.knobs.context import Observation
from latentknobs.knobs.knob import DecodingKnob, Stage
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies.base import Choice, Policy, State
from latentknobs.tensors import pick

ENTROPY_BINS, PROB_BINS, FEWEST = 8, 4, 8  # bins of entropy, of p_max within each, and the fewest choices in one


class Choices(NamedTuple):
    """M choices of a policy, one for each segment of some responses.

    Attributes:
        value_MJ: the values.
        entropy_M, max_prob_M: of the LM's next-token distribution (nats; largest probability) where each segment began; None
            where the engine cannot read responses.
    """

    value_MJ: Tensor
    entropy_M: Tensor | None = None
    max_prob_M: Tensor | None = None


class MeanShift(Policy):
    """One constant: the mean of the choices, knob by knob.

    Of temperatures it is the inverse of the mean inverse, because logits are multiplied by that; but 0 has no inverse, and where
    it occurs the mean is that of the temperatures themselves. Of ranks (top-k) it is the inverse of the mean inverse, too, where
    the neutral value keeps infinitely many. At a level above `token` each segment counts once.
    """

    draws = False

    def __init__(self, space: KnobSpace, choices: Choices) -> None:
        self.space, self.segmenter = space, WholeResponse()
        columns = zip(space.knobs, _checked(space, choices).unbind(-1), strict=True)
        self.value_J = torch.tensor([_mean(knob, value_M) for knob, value_M in columns], dtype=torch.float64)

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """The mean; reads nothing."""
        return Choice(self.value_J.to(seen.logits_NV.device).expand(len(seen.logits_NV), -1))

    @property
    def label(self) -> str:
        """In words: `temperature 0.63`."""
        return ", ".join(f"{name} {value:.3g}" for name, value in zip(self.space.names, self.value_J.tolist(), strict=True))


class Branch(Policy):
    """One choice for the first token, another one for all that follow: what a single choice is worth."""

    draws = False
    needs = ("position_N",)

    def __init__(self, space: KnobSpace, first: int, rest: int) -> None:
        self.space, self.segmenter = space, Every(1)
        self.first_J, self.rest_J = space.values_KJ()[first], space.values_KJ()[rest]

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """The values by position."""
        device, is_first_N1 = seen.logits_NV.device, (seen.position_N == 0).unsqueeze(-1)
        return Choice(torch.where(is_first_N1, self.first_J.to(device), self.rest_J.to(device)))


class Shuffle(Policy):
    """The choices in random places: every choice equally often, wherever it was first made.

    A row begins at a random place of a fixed random order and goes on from there, so that it makes each choice once before it
    repeats one. Its state is where it stands in the choices of each bin; -1 before its first choice from a bin.

    Args:
        segmenter: that of the policy whose choices these are.
        binned: choices stay within their bin of entropy and p_max: bins of equally many choices, by entropy and then by p_max.
        seed: of the order.
    """

    def __init__(self, space: KnobSpace, segmenter: Segmenter, choices: Choices, *, binned: bool = False, seed: int = 0) -> None:
        self.space, self.segmenter, self.binned = space, segmenter, binned
        self.needs = () if segmenter.is_token_level else ("position_N", "previous_NL")
        value_MJ = _checked(space, choices)
        bin_M = torch.zeros(len(value_MJ), dtype=torch.long)
        if binned:
            if choices.entropy_M is None or choices.max_prob_M is None:
                raise ConfigError(
                    "A shuffle within bins needs the entropy and the p_max of each choice, and they are not known here."
                )
            entropy_M, max_prob_M = (x.double().cpu().contiguous() for x in (choices.entropy_M, choices.max_prob_M))
            self.entropy_edges_E = _edges(entropy_M, min(ENTROPY_BINS, len(entropy_M) // FEWEST))
            outer_M = torch.bucketize(entropy_M, self.entropy_edges_E, right=True)
            inner = [max_prob_M[outer_M == e] for e in range(len(self.entropy_edges_E) + 1)]
            edges = [_edges(prob_m, min(PROB_BINS, len(prob_m) // FEWEST)) for prob_m in inner]
            self.prob_edges_EP = torch.nn.utils.rnn.pad_sequence(edges, batch_first=True, padding_value=torch.inf)
            bin_M = self._bin(entropy_M, max_prob_M)
        order_M = torch.randperm(len(value_MJ), generator=torch.Generator().manual_seed(seed))
        order_M = order_M[bin_M[order_M].argsort(stable=True)]
        self.value_MJ = value_MJ[order_M]
        self.size_B = torch.bincount(bin_M)

    def _bin(self, entropy_N: Tensor, max_prob_N: Tensor) -> Tensor:
        """(N,) the bin of each row. A value on an edge belongs above it, so that no bin that a row can reach is empty."""
        device = entropy_N.device
        edges_EP = self.prob_edges_EP.to(device)
        outer_N = torch.bucketize(entropy_N.double().contiguous(), self.entropy_edges_E.to(device), right=True)
        inner_N = (edges_EP[outer_N] <= max_prob_N.double().unsqueeze(-1)).sum(-1)
        return outer_N * (edges_EP.shape[1] + 1) + inner_N

    def start(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """(N, B) no row has begun."""
        return torch.full((rows, len(self.size_B)), -1, device=device)

    def choose(self, seen: Observation, uniform_N: Tensor, state: State = None) -> Choice:
        """The next choice of the row's bin; the uniform decides where a row begins."""
        assert state is not None
        rows, device = len(seen.logits_NV), seen.logits_NV.device
        bin_N = torch.zeros(rows, dtype=torch.long, device=device)
        if self.binned:
            bin_N = self._bin(*read_features(["entropy", "max_prob"], seen.hidden_ND, seen.logits_NV).T.contiguous())
        size_B = self.size_B.to(device)
        size_N, first_N = size_B[bin_N], (size_B.cumsum(0) - size_B)[bin_N]
        before_N = pick(state, bin_N)
        begun_N = (uniform_N.double() * size_N).long().clamp(max=size_N - 1)
        place_N = torch.where(before_N < 0, begun_N, (before_N + 1) % size_N)
        value_NJ = self.value_MJ.to(device)[first_N + place_N]
        if self.needs:  # between the beginnings of segments nothing is used up
            place_N = torch.where(self.segmenter.begins(seen.position_N, seen.newest_N), place_N, before_N)
        return Choice(value_NJ, state=state.scatter(1, bin_N.unsqueeze(-1), place_N.unsqueeze(-1)))


def _checked(space: KnobSpace, choices: Choices) -> Tensor:
    """(M, J) the values in float64; ConfigError if there are none, or they are not of this space."""
    value_MJ = torch.as_tensor(choices.value_MJ, dtype=torch.float64).cpu()
    if value_MJ.ndim != 2 or not len(value_MJ) or value_MJ.shape[1] != len(space.knobs):
        raise ConfigError(
            f"Choices of shape {tuple(value_MJ.shape)} are not values of the {len(space.knobs)} knobs of {space!r}."
        )
    return value_MJ


def _mean(knob: DecodingKnob, value_M: Tensor) -> float:
    if knob.stage == Stage.SCALE and (value_M > 0).all():
        return float(1 / (1 / value_M).mean())
    if knob.stage == Stage.RANK:
        share = float(torch.where(value_M == knob.neutral, 0.0, 1 / value_M).mean())
        return float(round(1 / share)) if share else knob.neutral
    return float(value_M.mean())


def _edges(x_M: Tensor, bins: int) -> Tensor:
    """Edges, themselves values of x, between at most so many bins of equally many values; none of the bins is empty."""
    sorted_M = x_M.sort().values
    cuts = sorted_M[torch.arange(1, max(bins, 1)) * len(sorted_M) // max(bins, 1)]
    return cuts[cuts > sorted_M[0]].unique() if len(cuts) else cuts
