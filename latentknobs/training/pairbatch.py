"""B pairs and what a head says about their segments, ready for the losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from latentknobs.config import TrainConfig
from latentknobs.data.segment_batches import Features
from latentknobs.heads.option_head import OptionHead
from latentknobs.learners.lpo import Objective, entropy, kl_divergence
from latentknobs.learners.lpo.losses import uniform_like
from latentknobs.learners.lpo.pairs import Pair
from latentknobs.learners.lpo.segment_losses import Segments, segment_scores


@dataclass(frozen=True)
class PairBatch:
    """The U different responses of B pairs, M segments in all.

    Attributes:
        segments: of the responses.
        log_pi_MK: the head at the segments; ref_MK: the reference there, without gradient; None is uniform.
        place_2B: which of the responses are chosen, and then, in the same order, rejected.
    """

    segments: Segments
    log_pi_MK: Tensor
    ref_MK: Tensor | None
    place_2B: Tensor

    @classmethod
    def read(cls, head: OptionHead, features: Features, pairs: Sequence[Pair], reference: OptionHead | None) -> "PairBatch":
        """Asks the head, and the reference (None is uniform), about some pairs.

        About each real segment once: never about padding, and only once about a response that is in the batch several times.
        Pairs are drawn with replacement, so that 64 of 200 pairs are some 55 different ones.
        """
        asked_2B = torch.tensor([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
        response_U, place_2B = asked_2B.unique(return_inverse=True)
        batch, device = features.batch(response_U), head.shift_F.device
        feature_MF = batch.feature_NF.to(device)
        log_pi_MK = head(feature_MF, fold=True)
        with torch.no_grad():
            ref_MK = None if reference is None else reference(feature_MF, fold=True)
        return cls(batch.segments.to(device), log_pi_MK, ref_MK, place_2B.to(device))

    @property
    def count(self) -> int:
        """N, the segments of all pairs: those of a response that is in several pairs count several times."""
        return int(self._weight_M().sum())

    def losses(self, config: TrainConfig) -> Tensor:
        """(B,) the objective's loss of each pair: what `lpo_loss` says."""
        if config.objective == "nll":
            return -self._scores("nll", config)[0]
        return -logsigmoid(config.beta * self.margins(config))

    def margins(self, config: TrainConfig) -> Tensor:
        """(B,) score of chosen minus score of rejected, before beta: above 0 where the head orders a pair rightly."""
        chosen_B, rejected_B = self._scores("tokens_separate" if config.objective == "nll" else config.objective, config)
        return chosen_B - rejected_B

    def penalty(self, config: TrainConfig) -> Tensor:
        """() to be lowered with the losses: the sum over N segments of `kl` KL(head, reference) - `entropy_bonus` entropy."""
        penalty_M = self.log_pi_MK.new_zeros(len(self.log_pi_MK))
        if not (config.kl or config.entropy_bonus):
            return penalty_M.sum()
        if config.kl:
            ref_MK = uniform_like(self.log_pi_MK) if self.ref_MK is None else self.ref_MK
            penalty_M = penalty_M + config.kl * kl_divergence(self.log_pi_MK, ref_MK)
        if config.entropy_bonus:
            penalty_M = penalty_M - config.entropy_bonus * entropy(self.log_pi_MK)
        return (penalty_M * self._weight_M()).sum()

    def _scores(self, objective: Objective, config: TrainConfig) -> tuple[Tensor, Tensor]:
        score_U = segment_scores(objective, config.length_norm, self.log_pi_MK, self.ref_MK, self.segments)
        chosen_B, rejected_B = score_U[self.place_2B].view(2, -1)
        return chosen_B, rejected_B

    def _weight_M(self) -> Tensor:
        """(M,) in how many of the 2 B places each segment is."""
        mask_US = self.segments.mask_US
        weight_U = torch.bincount(self.place_2B, minlength=len(mask_US))
        return weight_U.unsqueeze(-1).expand_as(mask_US)[mask_US]
