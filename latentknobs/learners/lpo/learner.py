"""LPO as a learner: pairs of scored rollouts, and a head that orders them as the reward does."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from latentknobs.data.columns import BASE_LOGPS, OPTION_LOGPS, SAMPLED_OPTION, Column
from latentknobs.data.examples import Batch, Example
from latentknobs.data.preferences import Preferences
from latentknobs.data.rollouts import Rollout
from latentknobs.errors import ConfigError
from latentknobs.learners.base import Fitted, Learner, Loss
from latentknobs.learners.lpo.findings import pair_findings
from latentknobs.learners.lpo.losses import uniform_like
from latentknobs.learners.lpo.pairs import pick_pairs
from latentknobs.learners.lpo.segment_losses import segment_scores
from latentknobs.learners.lpo.settings import Objective
from latentknobs.learners.lpo.settings import Settings as LPOSettings
from latentknobs.learners.penalties import entropy, kl_divergence

COLUMNS: dict[Objective, dict[str, Column]] = {
    "latent": {**OPTION_LOGPS},
    "tokens_separate": {**SAMPLED_OPTION},
    "tokens_printed": {**SAMPLED_OPTION},
    "tokens": {**OPTION_LOGPS, **SAMPLED_OPTION, **BASE_LOGPS},
    "nll": {**SAMPLED_OPTION},
}


class LPO(Learner):
    """Latent preference optimisation (arXiv 2411.09661): DPO on the options, with the frozen LM's likelihoods."""

    name: ClassVar[str] = "lpo"
    Settings = LPOSettings
    watched: ClassVar[str | None] = "accuracy"
    settings: LPOSettings

    @classmethod
    def columns(cls, settings: LPOSettings) -> Mapping[str, Column]:
        """What the objective reads."""
        return COLUMNS[settings.objective]

    def examples(
        self, rollouts: Iterable[Rollout], reward_N: Sequence[float | None], second_N: Sequence[float | None] | None = None
    ) -> list[Example]:
        """Pairs by the pair rule: chosen, then rejected; weighted by the margin of their rewards, if so set."""
        pairs = pick_pairs(
            [rollout.prompt for rollout in rollouts], reward_N, self.settings.pair_rule, second_N=second_N, top=self.settings.top,
            per_prompt=self.settings.pairs_per_prompt, seed=self.inputs.seed,
        )  # fmt: skip
        if self.settings.pair_weight == "equal":
            return [pair.example for pair in pairs]
        margins = [float(reward_N[pair.chosen] or 0) - float(reward_N[pair.rejected] or 0) for pair in pairs]
        mean = sum(margins) / len(margins)
        return [replace(pair.example, weight=margin / mean) for pair, margin in zip(pairs, margins, strict=True)]

    def from_preferences(self, preferences: Preferences) -> list[Example]:
        """Their pairs."""
        return [pair.example for pair in preferences.pairs]

    @classmethod
    def check(cls, settings: LPOSettings, *, has_preferences: bool, has_second: bool) -> None:
        """Refuses top_bottom without a second score or with margins; on pairs without, margins and objectives of options."""
        if settings.pair_rule == "top_bottom" and not has_second:
            raise ConfigError("The pair rule top_bottom compares two scores. Set second_reward, or use best_worst.")
        if settings.pair_rule == "top_bottom" and settings.pair_weight == "margin":
            raise ConfigError("Pairs of the rule top_bottom differ in two scores, not by one margin. Set pair_weight to equal.")
        if has_preferences and settings.pair_weight == "margin":
            raise ConfigError("Preferences from elsewhere have no rewards, so no margins. Set pair_weight to equal.")
        if has_preferences and settings.objective != "latent":
            raise ConfigError(
                f"The objective {settings.objective!r} learns from the options that responses were sampled with, and preferences "
                "from elsewhere do not have them. Set objective to 'latent', or leave out preferences."
            )
        super().check(settings, has_preferences=has_preferences, has_second=has_second)

    def most_responses(self, rollouts: int) -> int:
        """Two for each pair."""
        pairs = min(self.settings.pairs_per_prompt, rollouts // 2) if self.settings.pair_rule == "best_worst" else 1
        return 2 * pairs

    def loss(self, module: nn.Module, batch: Batch, reference: nn.Module | None) -> Loss:
        """-log sigmoid(beta * margin), Eq. 9, 10 or 11, or for `nll` section 4.6.1: what `lpo_loss` says.

        About each segment once, also where its response is in several pairs. The margin is the score of chosen minus the score of
        rejected, before beta: above 0 where the head orders a pair rightly.
        """
        settings, feature_MF = self.settings, batch.segments.feature_MF
        log_pi_MK = module(feature_MF)
        with torch.no_grad():
            ref_MK = None if reference is None else reference(feature_MF)

        def scores(objective: Objective) -> Tensor:
            score_U = segment_scores(objective, settings.length_norm, log_pi_MK, ref_MK, batch.segments)
            return score_U[batch.place_XB]

        chosen_B, rejected_B = scores("tokens_separate" if settings.objective == "nll" else settings.objective)
        margin_B = chosen_B - rejected_B
        loss_B = -scores("nll")[0] if settings.objective == "nll" else -logsigmoid(settings.beta * margin_B)
        loss_B = batch.weight_B.to(loss_B.dtype) * loss_B
        return Loss(loss_B, {"accuracy": (margin_B.detach() > 0).double()}, self._penalty(log_pi_MK, ref_MK))

    def _penalty(self, log_pi_MK: Tensor, ref_MK: Tensor | None) -> Tensor | None:
        """(M,) `kl` KL(head, reference) - `entropy_bonus` entropy; a reference of None is uniform."""
        settings = self.settings
        if not (settings.kl or settings.entropy_bonus):
            return None
        penalty_M = log_pi_MK.new_zeros(len(log_pi_MK))
        if settings.kl:
            penalty_M = penalty_M + settings.kl * kl_divergence(log_pi_MK, uniform_like(log_pi_MK) if ref_MK is None else ref_MK)
        if settings.entropy_bonus:
            penalty_M = penalty_M - settings.entropy_bonus * entropy(log_pi_MK)
        return penalty_M

    def summary(self, module: nn.Module, feature_NF: Tensor) -> dict[str, float]:
        """How decided the head is: its mean entropy in nats."""
        return {"head_entropy": entropy(module(feature_NF)).mean().item()}

    def findings(self, fitted: Fitted) -> list[str]:
        """One dominant task, a gap between training and held-out pairs, a bias of length."""
        return pair_findings(fitted)
