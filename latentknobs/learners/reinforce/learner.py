"""REINFORCE as a learner: every step samples with the head of now, and moves it along the gradient of the expected reward."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latentknobs.data.columns import MAX_PROB, OPTION_LOGPS, SAMPLED_OPTION, Column
from latentknobs.data.examples import Batch, Example
from latentknobs.data.rollouts import Rollout
from latentknobs.errors import ConfigError, NoExamplesError
from latentknobs.learners.base import Budget, Learner, Loss
from latentknobs.learners.penalties import entropy
from latentknobs.learners.reinforce.advantages import baselined, values, varies
from latentknobs.learners.reinforce.estimators import Surrogate, marginal_logps, policy_loss, score_logps, surrogate
from latentknobs.learners.reinforce.settings import Settings as ReinforceSettings
from latentknobs.learners.rewards import nothing_to_learn
from latentknobs.rewards.answer import final_number


class Reinforce(Learner):
    """REINFORCE on the options (arXiv 2603.09065), on policy; by default with the options of each token summed out."""

    name: ClassVar[str] = "reinforce"
    Settings = ReinforceSettings
    on_policy: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "knobs": ("temperature:0,0.5,1,1.25",), "steps": 32, "learning_rate": 1e-2, "schedule": "constant", "validation": 0.0,
        "checkpoint_every": 1,
    }  # fmt: skip
    settings: ReinforceSettings

    @classmethod
    def columns(cls, settings: ReinforceSettings) -> Mapping[str, Column]:
        """What the estimator and the mask read."""
        read = OPTION_LOGPS if settings.estimator == "marginal" else SAMPLED_OPTION
        return {**read, **(MAX_PROB if settings.max_prob is not None else {})}

    @property
    def updates(self) -> int:
        """Of the setting."""
        return self.settings.updates

    @property
    def imitates(self) -> str | None:
        """Of the setting."""
        return self.settings.imitate

    def budget(self, tokens: int, step: int) -> Budget:
        """Steps take turns with the token budgets, and with each of these with the parallel budgets."""
        lengths, groups = self.settings.token_budgets or (tokens,), self.settings.parallel
        if (longest := max(lengths)) > tokens:
            raise ConfigError(
                f"token_budgets holds {longest}, more than max_new_tokens={tokens}, the longest response. Raise max_new_tokens, "
                "or lower the budget."
            )
        if (largest := max(groups)) > self.inputs.rollouts:
            raise ConfigError(
                f"parallel holds {largest}, more than rollouts={self.inputs.rollouts}, the responses to a prompt, so no group is "
                "that large. Raise rollouts, or lower the parallel budget."
            )
        return Budget(lengths[step % len(lengths)], groups[step // len(lengths) % len(groups)])

    def examples(
        self, rollouts: Iterable[Rollout], reward_N: Sequence[float | None], second_N: Sequence[float | None] | None = None
    ) -> list[Example]:
        """One for each rollout of a prompt whose rollouts differ in worth; its weight is the advantage."""
        members, (value_PR, without_PR) = self._worth(rollouts, reward_N)
        advantage_PR = baselined(value_PR, without_PR, self.settings.baseline) * self.inputs.samples  # each response has a part
        advantage_PR[~varies(value_PR, without_PR)] = torch.nan
        if self.settings.normalise:
            advantage_PR /= advantage_PR.square().nanmean().sqrt().clamp(min=1e-8)
        found = [
            Example(prompt, (n,), advantage)
            for (prompt, mine), advantage_R in zip(members.items(), advantage_PR.tolist(), strict=True)
            for n, advantage in zip(mine, advantage_R, strict=False)
            if advantage == advantage
        ]
        if not found:
            known = [reward for reward in reward_N if reward is not None]
            raise NoExamplesError(nothing_to_learn(known, len(reward_N), len(members)))
        return found

    def earned(self, rollouts: Sequence[Rollout], reward_N: Sequence[float | None]) -> dict[int, float]:
        """By prompt, the mean over all groups of B of its responses."""
        members, (value_PR, _) = self._worth(rollouts, reward_N)
        return dict(zip(members, value_PR.nanmean(-1).tolist(), strict=True))

    def _worth(self, rollouts: Iterable[Rollout], reward_N: Sequence[float | None]) -> tuple[dict[int, list[int]], Tensor]:
        """The rollouts of each prompt, by prompt, and (2, P, R) their `values`; NaN where there is none."""
        found: dict[int, list[int]] = {}
        votes: list[Hashable] = []
        for n, rollout in enumerate(rollouts):
            found.setdefault(rollout.prompt, []).append(n)
            votes.append(final_number(rollout.text, self.settings.vote) if self.settings.group == "majority" else None)
        members = dict(sorted(found.items()))
        worth_2PR = torch.full((2, len(members), max(map(len, members.values()))), torch.nan, dtype=torch.float64)
        for p, mine in enumerate(members.values()):
            reward_R = torch.tensor([torch.nan if reward_N[n] is None else reward_N[n] for n in mine], dtype=torch.float64)
            both = values(reward_R, self.inputs.samples, self.settings.group, [votes[n] for n in mine])
            worth_2PR[:, p, : len(mine)] = torch.stack(both)
        return members, worth_2PR

    def loss(self, module: nn.Module, batch: Batch, reference: nn.Module | None) -> Loss:
        """Minus advantage times what `estimators` say, summed over the segments of a response."""
        settings, segments = self.settings, batch.segments
        log_pi_MK = module(segments.feature_MF)
        with torch.no_grad():
            before_M = None if reference is None else self._logps(reference(segments.feature_MF), batch)
        found = surrogate(self._logps(log_pi_MK, batch), before_M, settings.clip_ratio)
        if settings.max_prob is not None:
            found = Surrogate(*(part_M * (segments["max_prob_N"] < settings.max_prob) for part_M in found))
        up_B, down_B = (segments.sum(part_M)[batch.place_XB[0]] for part_M in (found.up_M, found.down_M))
        penalty_M = -settings.entropy_bonus * entropy(log_pi_MK) if settings.entropy_bonus else None
        clipped_U = segments.sum(found.clipped_M.to(up_B.dtype)) / segments.length_U.clamp(min=1)
        loss_B = policy_loss(batch.weight_B.to(up_B.dtype), up_B, down_B)
        return Loss(loss_B, {"clipped": clipped_U[batch.place_XB[0]]}, penalty_M)

    def _logps(self, log_pi_MK: Tensor, batch: Batch) -> Tensor:
        """(M,) what the estimator raises or lowers."""
        if self.settings.estimator == "marginal":
            return marginal_logps(log_pi_MK, batch.segments["logps_NK"])
        return score_logps(log_pi_MK, batch.segments["option_N"])

    def summary(self, module: nn.Module, feature_NF: Tensor) -> dict[str, float]:
        """How decided the head is: its mean entropy in nats."""
        return {"head_entropy": entropy(module(feature_NF)).mean().item()}
