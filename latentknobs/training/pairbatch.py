"""B pairs and what a head says about their segments, ready for the losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentknobs.config import TrainConfig
from latentknobs.data.features import Features
from latentknobs.data.pairs import Pair
from latentknobs.heads import OptionHead
from latentknobs.objectives import Responses, entropy, kl_divergence, lpo_loss, lpo_margin
from latentknobs.objectives.lpo import uniform_like


@dataclass(frozen=True)
class PairBatch:
    """N real segments of 2 B responses: the chosen ones first, then the rejected ones in the same order.

    Attributes:
        responses: the 2 B rows, padded to S segments.
        log_pi_NK: the head at the real segments.
        ref_NK: the reference there, without gradient.
    """

    responses: Responses
    log_pi_NK: Tensor
    ref_NK: Tensor

    @classmethod
    def read(cls, head: OptionHead, features: Features, pairs: Sequence[Pair], reference: OptionHead | None) -> "PairBatch":
        """Asks the head, and the reference (None is uniform), about some pairs.

        About each real segment once: never about padding, and only once about a response that is in the batch several times.
        Pairs are drawn with replacement, so that 64 of 200 pairs are some 55 different ones.
        """
        asked_B = torch.tensor([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
        response_U, place_B = asked_B.unique(return_inverse=True)
        batch, device = features.batch(response_U), head.shift_F.device
        responses, place_B = batch.responses.to(device), place_B.to(device)
        feature_MF = batch.feature_NF.to(device)
        log_pi_MK = head(feature_MF, fold=True)
        with torch.no_grad():
            ref_MK = uniform_like(log_pi_MK) if reference is None else reference(feature_MF, fold=True)
        number_US = (responses.mask_BT.flatten().cumsum(0) - 1).view_as(responses.mask_BT)  # which of the M a segment is
        segment_N = number_US[place_B][responses.mask_BT[place_B]]
        return cls(responses.rows(place_B), log_pi_MK.index_select(0, segment_N), ref_MK.index_select(0, segment_N))

    def losses(self, config: TrainConfig) -> Tensor:
        """(B,) the objective's loss of each pair."""
        return lpo_loss(config.objective, *self._sides(), beta=config.beta, length_norm=config.length_norm)

    def margins(self, config: TrainConfig) -> Tensor:
        """(B,) score of chosen minus score of rejected, before beta: above 0 where the head orders a pair rightly."""
        return lpo_margin(config.objective, *self._sides(), length_norm=config.length_norm)

    def penalties(self, config: TrainConfig) -> Tensor:
        """(N,) of each segment, to be lowered with the losses: `kl` KL(head, reference) - `entropy_bonus` entropy of the head."""
        penalty_N = self.log_pi_NK.new_zeros(len(self.log_pi_NK))
        if config.kl:
            penalty_N = penalty_N + config.kl * kl_divergence(self.log_pi_NK, self.ref_NK)
        if config.entropy_bonus:
            penalty_N = penalty_N - config.entropy_bonus * entropy(self.log_pi_NK)
        return penalty_N

    def _sides(self) -> tuple[Responses, Responses, Tensor, Tensor, Tensor, Tensor]:
        B = len(self.responses.mask_BT) // 2
        (pi_c, pi_r), (ref_c, ref_r) = (self._spread(log_NK).split(B) for log_NK in (self.log_pi_NK, self.ref_NK))
        return self.responses.rows(slice(None, B)), self.responses.rows(slice(B, None)), pi_c, pi_r, ref_c, ref_r

    def _spread(self, log_NK: Tensor) -> Tensor:
        """(2 B, S, K) the real segments at their places, 0 elsewhere."""
        mask_BS = self.responses.mask_BT
        out_BSK = log_NK.new_zeros(*mask_BS.shape, log_NK.shape[-1])
        out_BSK[mask_BS] = log_NK
        return out_BSK
