"""Likelihood tables from hidden states: the output projection a piece of the vocabulary at a time, never (N, V) logits.

What the tables need of a row is small: masses at a few temperatures (summed piece by piece), its best tokens (merged piece
by piece) and the logit of one target. Rows whose cut lies beyond the best tokens are projected again, a few at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentknobs.errors import ConfigError
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood import fast
from latentknobs.likelihood.masses import log_masses
from latentknobs.likelihood.prefix import is_ordered, product
from latentknobs.likelihood.sorting import first_argmax, sort_descending, top_values
from latentknobs.likelihood.walk import Needs, Targets, needs, scale_only, walk

CHUNK = 16384  # tokens of the vocabulary projected at once


@dataclass(frozen=True)
class Projection:
    """From hidden states to logits: the output embeddings, and what a family does to the logits after them.

    Attributes:
        weight_VD, bias_V: of the output embeddings.
        rescale: elementwise and increasing, e.g. Gemma 2's soft cap or Cohere's scale.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    rescale: Callable[[Tensor], Tensor] = lambda logits: logits

    def logits(self, hidden_ND: Tensor, tokens: slice = slice(None)) -> Tensor:
        """(N, C) logits of some tokens."""
        bias = None if self.bias_V is None else self.bias_V[tokens]
        return self.rescale(torch.nn.functional.linear(hidden_ND, self.weight_VD[tokens], bias))


@torch.no_grad()
def option_logps_from_hidden(
    hidden_ND: Tensor, targets_N: Tensor, space: KnobSpace, projection: Projection, *, compiled: bool = False
) -> Tensor:
    """`option_logps` without the logits: the same table, to rounding.

    Args:
        hidden_ND: (N, D) inputs of the output embeddings.
        targets_N: (N,) token ids.
        space: scaling and truncation knobs only.
        compiled: see `option_logps`.

    Returns:
        (N, K) nats; -inf where the option removes the target.

    Raises:
        ConfigError: a knob of another kind needs whole rows of logits.
    """
    if other := [knob.name for knob in space.knobs if not is_ordered(knob)]:
        raise ConfigError(f"The knob {other[0]!r} reads whole rows of logits. Use option_logps(logits, ...) for {space!r}.")
    need, V = needs(space), len(projection.weight_VD)
    top = fast.top_of(V)
    targets, top_NM = _read(hidden_ND, targets_N, need, projection, top if need.top else 1, compiled)
    if not need.top:
        return scale_only(space, targets)
    logps_NK, open_NK = walk(space, top_NM, targets, whole=top == V)
    if open_NK is not None:
        ks = open_NK.any(0).nonzero().squeeze(-1)
        rest = space.select(ks.tolist())
        for rows in open_NK.any(-1).nonzero().squeeze(-1).split(max(1, len(hidden_ND) // 16)):
            sorted_RV = sort_descending(projection.logits(hidden_ND[rows]).to(top_NM.dtype))
            logps_NK[rows.unsqueeze(-1), ks] = walk(rest, sorted_RV, targets[rows], whole=True)[0]
    return logps_NK


def _read(
    hidden_ND: Tensor, targets_N: Tensor, need: Needs, projection: Projection, top: int, compiled: bool
) -> tuple[Targets, Tensor]:
    """One pass over the vocabulary: masses, best tokens (N, top) and the targets' logits."""
    temperatures = [product(key) for key in need.keys]
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    best_N = torch.full_like(hidden_ND[:, 0], -torch.inf, dtype=dtype)
    mass_NQ = torch.zeros(len(hidden_ND), len(temperatures), dtype=torch.float64, device=hidden_ND.device)
    logit_N, first_N = best_N.clone(), torch.zeros_like(targets_N)
    tops: list[Tensor] = []
    for begin in range(0, len(projection.weight_VD), CHUNK):
        logits_NC = projection.logits(hidden_ND, slice(begin, begin + CHUNK))
        best_here_N, log_mass_NQ = log_masses(logits_NC, temperatures, compiled)
        new_N = torch.maximum(best_N, best_here_N)
        for q, temperature in enumerate(temperatures):
            old_N = mass_NQ[:, q] * ((best_N - new_N).double() / temperature).exp()
            mass_NQ[:, q] = old_N + (log_mass_NQ[:, q] + (best_here_N - new_N) / temperature).double().exp()
        if need.greedy:
            first_N = torch.where(best_here_N > best_N, begin + first_argmax(logits_NC), first_N)
        if need.top:
            tops = [top_values(torch.cat([*tops, top_values(logits_NC, top)], -1), top)]
        here_N = targets_N - begin
        is_here_N = (here_N >= 0) & (here_N < logits_NC.shape[1])
        found_N = logits_NC.gather(-1, here_N.clamp(0, logits_NC.shape[1] - 1).unsqueeze(-1)).squeeze(-1)
        logit_N, best_N = torch.where(is_here_N, found_N.to(dtype), logit_N), new_N
    targets = Targets(logit_N, best_N, targets_N == first_N, mass_NQ.log().to(dtype))
    return targets, tops[0] if need.top else best_N.unsqueeze(-1)
