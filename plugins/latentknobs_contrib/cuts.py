"""Truncations: each keeps a prefix of the descending order, so the base class does everything but the count."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from latentknobs.knobs.knob import Columns, Sees, Stage, TruncationKnob

REMOVED = 1e4  # nats below the best token: no weights reach that far, masks of float16's lowest number and of others do
TOP_H_WIDTH = 100  # top-H measures entropy among this many best tokens (Potraghloo et al. 2025; transformers' top_n)


class EpsilonCutoff(TruncationKnob):
    """Keeps tokens of probability >= epsilon (Hewitt et al. 2022, arXiv 2210.15191, section 3)."""

    name: ClassVar[str] = "epsilon_cutoff"
    stage: ClassVar[Stage] = Stage.TAIL
    sees: ClassVar[Sees] = "mass"
    neutral: ClassVar[float] = 0.0
    options: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.0, 0.0003, 0.0009, 0.003)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """(N,) count of leading tokens with p >= epsilon (leading: the last column may stand for all that follow)."""
        return (sorted_NV.softmax(-1) >= value_N.unsqueeze(-1)).cumprod(-1).sum(-1)

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        """(N, C) nats below ln(epsilon)."""
        return value_N.clamp(min=torch.finfo(value_N.dtype).tiny).log().unsqueeze(-1) - columns.logp_NC


class EtaCutoff(TruncationKnob):
    """Keeps tokens of probability >= min(epsilon, sqrt(epsilon) * exp(-entropy)) (Hewitt et al. 2022, arXiv 2210.15191)."""

    name: ClassVar[str] = "eta_cutoff"
    stage: ClassVar[Stage] = Stage.TAIL
    neutral: ClassVar[float] = 0.0
    options: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (0.0, 0.0003, 0.0009, 0.003)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """(N,) count of p >= eta; the entropy is in nats."""
        p_NV = sorted_NV.softmax(-1)
        eta_N = torch.minimum(value_N, value_N.sqrt() * (-torch.special.entr(p_NV).sum(-1)).exp())
        return (p_NV >= eta_N.unsqueeze(-1)).sum(-1)

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        """(N, C) nats below ln(eta)."""
        log_N1 = value_N.clamp(min=torch.finfo(value_N.dtype).tiny).log().unsqueeze(-1)
        minus_entropy_N1 = (columns.mass_NC * columns.logp_NC).sum(-1, keepdim=True)
        return torch.minimum(log_N1, log_N1 / 2 + minus_entropy_N1) - columns.logp_NC


class PLess(TruncationKnob):
    """Keeps tokens of probability >= scale * sum of squared probabilities (p-less: Tan et al. 2025, arXiv 2509.23234).

    The paper has no hyperparameter: its threshold is scale 1. Scales below 1 keep more.
    """

    name: ClassVar[str] = "p_less"
    stage: ClassVar[Stage] = Stage.THRESHOLD
    neutral: ClassVar[float] = 0.0
    options: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.1, 0.3, 1.0)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """(N,) count of p >= scale * collision probability."""
        p_NV = sorted_NV.softmax(-1)
        collision_N1 = p_NV.square().sum(-1, keepdim=True)
        return (p_NV >= value_N.unsqueeze(-1) * collision_N1).sum(-1)

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        """(N, C) nats below ln(scale * collision probability)."""
        log_collision_N1 = (columns.log_mass_NC.log_softmax(-1) + columns.logp_NC).logsumexp(-1, keepdim=True)
        return value_N.clamp(min=torch.finfo(value_N.dtype).tiny).log().unsqueeze(-1) + log_collision_N1 - columns.logp_NC


class TopNSigma(TruncationKnob):
    """Keeps logits within n standard deviations of the best one (Tang et al. 2024, arXiv 2411.07641); 0 keeps all.

    The deviation is the population's, over tokens not yet removed, as in llama.cpp; masks of a dtype's lowest number remove too.
    A temperature before it or after it changes nothing about what is kept.
    """

    name: ClassVar[str] = "top_n_sigma"
    stage: ClassVar[Stage] = Stage.SPREAD
    neutral: ClassVar[float] = 0.0
    options: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 0.7, 1.0, 1.5)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """(N,) count of logits >= max - n * sigma."""
        is_left_NV = sorted_NV > sorted_NV[:, :1] - REMOVED
        count_N1 = is_left_NV.sum(-1, keepdim=True)
        mean_N1 = sorted_NV.masked_fill(~is_left_NV, 0).sum(-1, keepdim=True) / count_N1
        variance_N1 = (sorted_NV - mean_N1).masked_fill(~is_left_NV, 0).square().sum(-1, keepdim=True) / count_N1
        return (sorted_NV >= sorted_NV[:, :1] - value_N.unsqueeze(-1) * variance_N1.sqrt()).sum(-1)

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        """(N, C) nats below max - n * sigma."""
        gap_NC = columns.logit_NC[:, :1] - columns.logit_NC
        count_NC = columns.counts_C * (gap_NC < REMOVED)
        share_NC = count_NC / count_NC.sum(-1, keepdim=True)
        mean_N1 = (share_NC * gap_NC).sum(-1, keepdim=True)
        variance_N1 = (share_NC * (gap_NC - mean_N1).square()).sum(-1, keepdim=True)
        return gap_NC - value_N.unsqueeze(-1) * variance_N1.clamp(min=torch.finfo(gap_NC.dtype).tiny).sqrt()


class TopH(TruncationKnob):
    """Keeps top tokens while their share of the entropy stays <= h (Potraghloo et al. 2025, arXiv 2509.02510).

    As in transformers, entropy is measured within the 100 best tokens, and no more than those are kept.
    """

    name: ClassVar[str] = "top_h"
    stage: ClassVar[Stage] = Stage.SPREAD
    neutral: ClassVar[float] = 1.0
    options: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.3, 0.5, 0.8, 1.0)

    def kept(self, sorted_NV: Tensor, value_N: Tensor) -> Tensor:
        """(N,) count of prefixes whose sum of -p ln p is at most h times that of all."""
        terms_NV = torch.special.entr(sorted_NV[:, :TOP_H_WIDTH].softmax(-1))
        bound_N1 = value_N.unsqueeze(-1) * terms_NV.sum(-1, keepdim=True)
        return (terms_NV.cumsum(-1) <= bound_N1).sum(-1)

    def excess(self, columns: Columns, value_N: Tensor) -> Tensor:
        """(N, C) share of the entropy up to and with a token, minus h: exact where the best 100 are columns of their own."""
        terms_NH = torch.special.entr(columns.logit_NC[:, :TOP_H_WIDTH].softmax(-1))
        share_NH = terms_NH.cumsum(-1) / terms_NH.sum(-1, keepdim=True).clamp(min=torch.finfo(terms_NH.dtype).tiny)
        beyond_NR = torch.ones_like(columns.logit_NC[:, TOP_H_WIDTH:])
        return torch.cat([share_NH, beyond_NR], -1) - value_N.unsqueeze(-1)
