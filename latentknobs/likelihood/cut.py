"""How far each row is cut by knob values of its own, read off its best tokens instead of a sorted row."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentknobs.knob import ScalingKnob, TruncationKnob
from latentknobs.likelihood.masses import row_log_masses
from latentknobs.likelihood.prefix import UNCUT, Scaled, sees
from latentknobs.likelihood.sorting import top_tokens
from latentknobs.space import KnobSpace

TOP = 256  # part of what a seed means: another number would order the CDF of uncut rows differently (see decoding.sampler)


@dataclass(frozen=True)
class Cut:
    """What the knobs made of N rows.

    Attributes:
        top_NM: logits of the best tokens over the temperature, descending; token_NM: their ids.
        count_N: how many of them are kept.
        temperature_N: what the logits were divided by (1 in greedy rows).
        is_open_N: rows that are not cut, or not known to be cut, inside the top; None where no row can be.
        is_cut_N: rows that something does cut; open ones somewhere beyond the top or where the top does not tell.
        is_unknown_N: open rows whose cut may also lie inside the top.
        is_uncut_N: rows in which every token is kept.
        is_greedy_N: rows in which the first argmax alone is kept.
    """

    top_NM: Tensor
    token_NM: Tensor
    count_N: Tensor
    temperature_N: Tensor
    is_open_N: Tensor | None
    is_cut_N: Tensor
    is_unknown_N: Tensor
    is_uncut_N: Tensor
    is_greedy_N: Tensor

    def rows(self, rows: Tensor) -> "Cut":
        """The same of some rows."""
        parts: dict[str, Any] = {name: None if part is None else part[rows] for name, part in vars(self).items()}
        return replace(self, **parts)


def cut_rows(logits_NV: Tensor, space: KnobSpace, value_NJ: Tensor) -> Cut:
    """How far each row is cut by its own knob values, read off its best tokens; order-preserving knobs only."""
    top_NM, token_NM = top_tokens(logits_NV, TOP)
    M, V = top_NM.shape[1], logits_NV.shape[1]
    temperature_N = torch.ones_like(top_NM[:, 0])
    count_N = torch.full_like(token_NM[:, 0], UNCUT)
    is_greedy_N = is_unknown_N = torch.zeros_like(count_N, dtype=torch.bool)
    scaled = Scaled(top_NM, M == V, None)
    acts_NJ = value_NJ != torch.tensor([knob.neutral for knob in space.knobs], dtype=value_NJ.dtype, device=value_NJ.device)
    acting = acts_NJ.any(0).tolist()
    for j in [j for j, acts in enumerate(acting) if acts]:
        knob, value_N, acts_N = space.knobs[j], value_NJ[:, j], acts_NJ[:, j]
        if isinstance(knob, ScalingKnob):
            divisor_N = torch.where(acts_N, knob.temperature(value_N), 1.0)
            is_greedy_N = is_greedy_N | (divisor_N == 0)
            divisor_N = divisor_N.masked_fill(is_greedy_N, 1.0)
            top_NM, temperature_N = top_NM / divisor_N.unsqueeze(-1), temperature_N * divisor_N
            scaled = Scaled(top_NM, M == V, None)
            continue
        assert isinstance(knob, TruncationKnob)
        if sees(knob) == "row" and M < V:
            is_unknown_N = is_unknown_N | acts_N
            continue
        shown_NW = _shown(knob, scaled, logits_NV, temperature_N, count_N, acts_N)
        own_N = scaled.close(knob.kept(shown_NW, value_N).long().unsqueeze(-1)).squeeze(-1)
        if sees(knob) == "mass":
            is_unknown_N = is_unknown_N | (acts_N & (count_N > M) & (count_N < UNCUT))
        count_N = torch.where(acts_N, torch.minimum(own_N, count_N), count_N)
    count_N = torch.where(is_greedy_N, 1, count_N)
    is_unknown_N = is_unknown_N & ~is_greedy_N
    is_uncut_N = (count_N == UNCUT) & ~is_unknown_N
    is_open_N = None if M == V else (count_N > M) | is_unknown_N
    count_N = count_N.clamp(max=M)
    return Cut(top_NM, token_NM, count_N, temperature_N, is_open_N, ~is_uncut_N, is_unknown_N, is_uncut_N, is_greedy_N)


def _shown(
    knob: TruncationKnob, scaled: Scaled, logits_NV: Tensor, temperature_N: Tensor, count_N: Tensor, acts_N: Tensor
) -> Tensor:
    """What a knob is shown of each row: the top; for one that sees "mass", cut as far as it is cut, and the rest's mass."""
    top_NM = scaled.top_RM
    if sees(knob) == "prefix":
        return top_NM
    place_M = torch.arange(top_NM.shape[1], device=top_NM.device)
    kept_NM = top_NM.masked_fill(place_M >= count_N.unsqueeze(-1), -torch.inf)
    if scaled.whole:
        return kept_NM
    rest_N = torch.full_like(top_NM[:, 0], -torch.inf)
    whole = (acts_N & (count_N == UNCUT)).nonzero().squeeze(-1)
    if len(whole):
        mass_R = row_log_masses(logits_NV[whole], temperature_N[whole])
        rest_N[whole] = Scaled(top_NM[whole], False, mass_R).shown()[:, -1]
    return torch.cat([kept_NM, rest_N.unsqueeze(-1)], -1)
