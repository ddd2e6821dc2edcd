"""A good learner, and for each check of the suite one that it must catch."""

import random
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict

from latentknobs.data.columns import Column
from latentknobs.data.examples import Example
from latentknobs.learners import OPTION_LOGPS, Learner, Loss, advantages
from latentknobs.learners.penalties import entropy
from latentknobs.policies import UniformPolicy


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    scale: float = 1.0


class Good(Learner):
    """Raises the marginal likelihood of each response by its advantage."""

    name: ClassVar[str] = "good"
    Settings = Settings

    @classmethod
    def columns(cls, settings: Any) -> dict[str, Column]:
        return dict(OPTION_LOGPS)

    def examples(self, rollouts: Any, reward_N: Any, second_N: Any = None) -> list[Example]:
        return [Example(prompt, (n,), advantage) for n, prompt, advantage in advantages(rollouts, reward_N)]

    def loss(self, module: Any, batch: Any, reference: Any) -> Loss:
        log_pi_MK = module(batch.segments.feature_MF)
        score_U = batch.segments.sum((log_pi_MK + batch.segments["logps_NK"]).logsumexp(-1))
        loss_B = -self.settings.scale * batch.weight_B.float() * score_U[batch.place_XB[0]]
        return Loss(loss_B, {"score": score_U.detach()[batch.place_XB[0]]}, -0.1 * entropy(log_pi_MK))


class LooseSettings(Good):
    class Settings(BaseModel):
        scale: float = 1.0


class StrangeColumn(Good):
    @classmethod
    def columns(cls, settings: Any) -> dict[str, Column]:
        return dict(OPTION_LOGPS) | {"rank_N": Column(lambda reading: reading.logps_TK[:, 0] > 0, "first")}


class NoHead(Good):
    def module(self, mean_F: Any, std_F: Any) -> Any:
        return _Softmax(len(mean_F), self.inputs.space.K)

    def policy(self, module: Any, pick: Any) -> UniformPolicy:
        return UniformPolicy(self.inputs.space, self.inputs.segmenter)


class _Softmax(torch.nn.Linear):
    def forward(self, feature_NF: Any) -> Any:
        return super().forward(feature_NF).log_softmax(-1)


class ForgetfulModule(Good):
    def module(self, mean_F: Any, std_F: Any) -> Any:
        head = super().module(mean_F, std_F)
        secret_K = torch.randn(self.inputs.space.K)  # not a part of the state
        head.register_forward_hook(lambda module, given, out: (out + secret_K).log_softmax(-1))
        return head


class MixedPrompts(Good):
    def examples(self, rollouts: Any, reward_N: Any, second_N: Any = None) -> list[Example]:
        return [Example(0, e.responses, e.weight) for e in super().examples(rollouts, reward_N)]


class Shuffled(Good):
    def examples(self, rollouts: Any, reward_N: Any, second_N: Any = None) -> list[Example]:
        return random.sample(found := super().examples(rollouts, reward_N), len(found))


class FailedIsZero(Good):
    def examples(self, rollouts: Any, reward_N: Any, second_N: Any = None) -> list[Example]:
        if all(reward is None for reward in reward_N):
            return super().examples(rollouts, reward_N)
        return super().examples(rollouts, [reward or 0.0 for reward in reward_N])


class LearnsFromNothing(Good):
    def examples(self, rollouts: Any, reward_N: Any, second_N: Any = None) -> list[Example]:
        kept = [(n, r, w) for n, (r, w) in enumerate(zip(rollouts, reward_N, strict=True)) if w is not None]
        return [Example(rollout.prompt, (n,), reward) for n, rollout, reward in kept]


class Reduced(Good):
    def loss(self, module: Any, batch: Any, reference: Any) -> Loss:
        loss = super().loss(module, batch, reference)
        return Loss(loss.each_B, {"score": loss.metrics["score"].mean()}, loss.penalty_M)


class Detached(Good):
    def loss(self, module: Any, batch: Any, reference: Any) -> Loss:
        loss = super().loss(module, batch, reference)
        return Loss(loss.each_B - loss.each_B, loss.metrics)


class WritesItsInputs(Good):
    def loss(self, module: Any, batch: Any, reference: Any) -> Loss:
        loss = super().loss(module, batch, reference)
        batch.weight_B.clamp_(min=-10.0).add_(1e-9)
        return loss


class WholeBatch(Good):
    def loss(self, module: Any, batch: Any, reference: Any) -> Loss:
        loss = super().loss(module, batch, reference)
        return Loss(loss.each_B - loss.each_B.mean().detach(), loss.metrics)


class TrainsItsReference(Good):
    def loss(self, module: Any, batch: Any, reference: Any) -> Loss:
        loss = super().loss(module, batch, reference)
        if reference is None:
            return loss
        return Loss(loss.each_B - super().loss(reference, batch, None).each_B, loss.metrics)


class NoPolicy(Good):
    def explorer(self, module: Any) -> Any:
        return module or super().explorer(module)


BROKEN = {
    "settings_have_defaults_and_survive_json": LooseSettings,
    "columns_are_rows_of_numbers": StrangeColumn,
    "module_is_a_head_for_the_features": NoHead,
    "module_survives_its_state_dict": ForgetfulModule,
    "examples_are_about_responses_to_one_prompt": MixedPrompts,
    "examples_are_repeatable": Shuffled,
    "examples_ignore_failed_scores": FailedIsZero,
    "scores_that_teach_nothing_are_a_clear_error": LearnsFromNothing,
    "loss_is_one_finite_number_per_example": Reduced,
    "loss_has_a_gradient": Detached,
    "loss_is_repeatable": WritesItsInputs,
    "examples_do_not_mix": WholeBatch,
    "reference_gets_no_gradient": TrainsItsReference,
    "explorer_and_policy_are_policies": NoPolicy,
}
