"""AutoDeco as a learner: heads that give values, trained through differentiable likelihoods of finished responses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latentknobs.data.columns import Column
from latentknobs.data.examples import Batch, Example
from latentknobs.data.preferences import Preferences
from latentknobs.data.rollouts import Rollout
from latentknobs.data.top_logits import top_logits, unpack
from latentknobs.errors import ConfigError, NoExamplesError
from latentknobs.heads.features import HIDDEN
from latentknobs.heads.value_head import ValueHead
from latentknobs.knobs.space import KnobSpace
from latentknobs.learners.base import Fitted, Inputs, Learner, Loss
from latentknobs.learners.end_to_end.losses import preference_loss, token_weights
from latentknobs.learners.end_to_end.settings import Settings as EndToEndSettings
from latentknobs.learners.lpo.pairs import pick_pairs
from latentknobs.learners.rewards import advantages, by_prompt, nothing_to_learn
from latentknobs.likelihood.soft import check_soft, soft_logps
from latentknobs.policies import ConstantPolicy, Policy

GOOD = 0.5  # least reward of a correct response


class EndToEnd(Learner):
    """Continuous values (arXiv 2510.26697), by likelihood, by preference, or by likelihood weighted with the reward."""

    name: ClassVar[str] = "end_to_end"
    Settings = EndToEndSettings
    settings: EndToEndSettings

    def __init__(self, settings: Any, inputs: Inputs) -> None:
        super().__init__(settings, inputs)
        check_soft(inputs.space)
        if inputs.rank or inputs.factorised:
            raise ConfigError("A value head has neither rank nor factorised: it has a network for each knob. Leave them out.")
        if settings.statistics and inputs.segmenter.level != "token":
            raise ConfigError(
                f"statistics=True reads the distribution of every token, and level={inputs.segmenter.level!r} chooses more "
                "seldom. Use level='token', or leave statistics out."
            )
        self._new(1)  # refuses ranges that contradict the knobs

    @classmethod
    def columns(cls, settings: EndToEndSettings) -> Mapping[str, Column]:
        """The best logits of every token."""
        return {"logits_NX": top_logits(settings.top_logits)}

    def _new(self, features: int) -> ValueHead:
        statistics = self.settings.statistics and HIDDEN in self.inputs.features  # not the rival
        return ValueHead(self.inputs.space, features, hidden=self.inputs.hidden, statistics=statistics)

    def module(self, mean_F: Tensor, std_F: Tensor) -> ValueHead:
        """A value head, whose ranges are those of the knobs' grids."""
        head = self._new(len(mean_F))
        head.fit_scaler(mean_F, std_F)
        return head

    def explorer(self, module: nn.Module | None) -> Policy | None:
        """The head of the round before; first the options of the grid, or the LM itself."""
        if module is not None or self.settings.first_text == "options":
            return super().explorer(module)
        return neutral_policy(self.inputs.space)

    def examples(
        self, rollouts: Iterable[Rollout], reward_N: Sequence[float | None], second_N: Sequence[float | None] | None = None
    ) -> list[Example]:
        """Pairs, weighted responses, or the responses that scored well."""
        settings = self.settings
        if settings.objective == "preference":
            prompts = [rollout.prompt for rollout in rollouts]
            pairs = pick_pairs(prompts, reward_N, "best_worst", per_prompt=settings.pairs_per_prompt, seed=self.inputs.seed)
            return [pair.example for pair in pairs]
        if settings.objective == "likelihood":
            return self._kept(rollouts, reward_N)
        found = advantages(rollouts, reward_N)
        weights = torch.tensor([advantage for *_, advantage in found], dtype=torch.float64).div(settings.reward_temperature).exp()
        scaled = (weights / weights.mean()).tolist()
        return [Example(prompt, (n,), weight) for (n, prompt, _), weight in zip(found, scaled, strict=True)]

    def _kept(self, rollouts: Iterable[Rollout], reward_N: Sequence[float | None]) -> list[Example]:
        """The responses whose likelihood is raised."""
        keep, members = self.settings.keep, by_prompt((rollout.prompt for rollout in rollouts), reward_N)
        known = [reward for rewards in members.values() for reward in rewards.values()]
        if keep == "best":
            varied = {prompt: rewards for prompt, rewards in members.items() if len({*rewards.values()}) > 1}
            kept = [(max(reversed(rewards), key=rewards.__getitem__), prompt) for prompt, rewards in varied.items()]
        else:
            rows = [(n, prompt, reward) for prompt, rewards in members.items() for n, reward in rewards.items()]
            kept = sorted((n, prompt) for n, prompt, reward in rows if keep == "all" or reward >= GOOD)
        if not kept and known and keep == "correct":
            raise NoExamplesError(
                f"None of {len(known)} responses has a reward of {GOOD} or more (keep='correct'); the highest is "
                f"{max(known):g}. Set keep to 'best', or collect more rollouts."
            )
        if not kept:
            raise NoExamplesError(nothing_to_learn(known, len(reward_N), len(members)))
        return [Example(prompt, (n,)) for n, prompt in kept]

    def from_preferences(self, preferences: Preferences) -> list[Example]:
        """Their pairs; without pairs in the objective, their chosen responses."""
        pairs = [pair.example for pair in preferences.pairs]
        if self.settings.objective == "preference":
            return pairs
        return list(dict.fromkeys(replace(pair, responses=pair.responses[:1]) for pair in pairs))

    @classmethod
    def learns_alone(cls, settings: EndToEndSettings) -> bool:
        """With the objective likelihood."""
        return settings.objective == "likelihood"

    def most_responses(self, rollouts: int) -> int:
        """Two for each pair; one, or all."""
        settings = self.settings
        if settings.objective == "preference":
            return 2 * min(settings.pairs_per_prompt, rollouts // 2)
        return 1 if settings.objective == "likelihood" and settings.keep == "best" else rollouts

    def loss(self, module: nn.Module, batch: Batch, reference: nn.Module | None) -> Loss:
        """Per example: -log P of its response, a mean over its tokens; or -log sigmoid(beta * margin) of its pair.

        The reference is the LM itself before there is a module.
        """
        settings, segments = self.settings, batch.segments
        columns, target = unpack(segments["logits_NX"])
        logp_M = self._logps(module, batch)
        length_U = segments.length_U.clamp(min=1)
        mean_B = (segments.sum(logp_M.detach()) / length_U)[batch.place_XB[0]]
        if settings.objective == "preference":
            with torch.no_grad():
                before_M = target.logit_N if reference is None else self._logps(reference, batch)
            chosen_B, rejected_B = segments.sum(logp_M - before_M)[batch.place_XB]
            is_right_B = (chosen_B > rejected_B).detach().to(mean_B.dtype)
            return Loss(preference_loss(chosen_B, rejected_B, settings.beta), {"accuracy": is_right_B, "log_likelihood": mean_B})
        weight_M = torch.ones_like(logp_M)
        if settings.objective == "likelihood":
            is_best_M = target.logit_N >= columns.logit_NC[:, 0]
            weight_M = token_weights(logp_M, target.logit_N, is_best_M, easy_mask=settings.easy_mask, reweight=settings.reweight)
        score_B = (segments.sum(weight_M * logp_M) / length_U)[batch.place_XB[0]]
        return Loss(-batch.weight_B.to(score_B.dtype) * score_B, {"log_likelihood": mean_B})

    def _logps(self, module: nn.Module, batch: Batch) -> Tensor:
        """(M,) log P of every token under the module's values."""
        columns, target = unpack(batch.segments["logits_NX"])
        value_MJ = module(batch.segments.feature_MF, columns)
        return soft_logps(columns, target, self.inputs.space, value_MJ, self.settings.alpha)

    def summary(self, module: nn.Module, feature_NF: Tensor) -> dict[str, float]:
        """Mean and standard deviation of each knob's value; nothing of a head with statistics, which needs logits."""
        if getattr(module, "statistics", False):
            return {}
        value_NJ = module(feature_NF)
        mean_J, std_J = value_NJ.mean(0).tolist(), value_NJ.std(0).tolist()
        return {
            f"{name}_{what}": value
            for name, mean, std in zip(self.inputs.space.names, mean_J, std_J, strict=True)
            for what, value in (("mean", mean), ("std", std))
        }

    def findings(self, fitted: Fitted) -> list[str]:
        """Likelihood that learns a global value."""
        if self.settings.objective != "likelihood":
            return []
        return [
            "The objective likelihood sets how sharp decoding is by what the responses were sampled with, and by easy_mask and "
            "reweight, not by the reward (docs/continuous.md). Compare with the constant at the head's mean before using it."
        ]


def neutral_policy(space: KnobSpace) -> ConstantPolicy:
    """The LM itself, as a policy with the knobs of a space."""
    knobs = tuple(knob.model_copy(update={"options": (knob.neutral,)}) for knob in space.knobs)
    return ConstantPolicy(KnobSpace(knobs, ((0,) * len(knobs),), space.order))
