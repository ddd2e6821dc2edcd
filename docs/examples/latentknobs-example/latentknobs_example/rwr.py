"""Reward-weighted regression as a learner."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from latentknobs.learners import OPTION_LOGPS, Batch, Column, Example, Learner, Loss, advantages


class Settings(BaseModel):
    """What `rwr` alone reads of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    temperature: float = Field(default=0.5, gt=0)
    """Of the weights exp(advantage / temperature), in units of the reward: low follows only the best responses."""


class RewardWeightedRegression(Learner):
    """Maximises the log-likelihood of responses under the options, each weighted by exp(advantage / temperature).

    Peters & Schaal 2007, Eq. 5, with weights that sum to the number of responses within each prompt. The options are summed over:
    log P(y) = sum over segments of log sum_k pi_k P(segment | k), so nothing needs to be known of the options that were sampled.
    """

    name: ClassVar[str] = "rwr"
    Settings = Settings

    @classmethod
    def columns(cls, settings: Settings) -> Mapping[str, Column]:
        return OPTION_LOGPS

    def examples(
        self, rollouts: Iterable[Any], reward_N: Sequence[float | None], second_N: Sequence[float | None] | None = None
    ) -> list[Example]:
        by_prompt: dict[int, list[tuple[int, float]]] = {}
        for n, prompt, advantage in advantages(rollouts, reward_N):
            by_prompt.setdefault(prompt, []).append((n, advantage))
        found = []
        for prompt, rows in by_prompt.items():
            advantage_R = torch.tensor([advantage for _, advantage in rows], dtype=torch.float64)
            weight_R = len(rows) * (advantage_R / self.settings.temperature).softmax(-1)
            found += [Example(prompt, (n,), weight) for (n, _), weight in zip(rows, weight_R.tolist(), strict=True)]
        return found

    def loss(self, module: torch.nn.Module, batch: Batch, reference: torch.nn.Module | None) -> Loss:
        log_pi_MK = module(batch.segments.feature_MF)
        marginal_M = (log_pi_MK + batch.segments["logps_NK"].to(log_pi_MK.dtype)).logsumexp(-1)
        score_B = batch.segments.sum(marginal_M)[batch.place_XB[0]]
        return Loss(-batch.weight_B.to(score_B.dtype) * score_B, {"log_likelihood": score_B.detach()})
