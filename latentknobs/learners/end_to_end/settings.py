"""The settings of the end-to-end learner: what is maximised, on which responses, and what the value head reads."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from latentknobs.stages import Enters, Harmless

Objective = Literal["likelihood", "preference", "reward_weighted"]
Keep = Literal["correct", "best", "all"]
Reweight = Literal["none", "base", "scaled"]
FirstText = Literal["neutral", "options"]


class Settings(BaseModel):
    """The settings that only `end_to_end` has."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, allow_inf_nan=False)

    objective: Annotated[Objective, Enters("examples", "fit")] = "preference"
    """What is learned: preference (pairs), reward_weighted, or likelihood (of responses that scored well)."""
    keep: Annotated[Keep, Enters("examples")] = "best"
    """For likelihood, the responses learned from: correct (reward at least 0.5), the best of each prompt, or all."""
    beta: Annotated[float, Enters("fit")] = Field(default=0.1, gt=0)
    """Sharpness of the preference loss."""
    pairs_per_prompt: Annotated[int, Enters("examples")] = Field(default=1, ge=1)
    """For preference: also pair second best with second worst, and so on."""
    reward_temperature: Annotated[float, Enters("examples")] = Field(default=0.25, gt=0)
    """For reward_weighted: weights are exp(advantage / reward_temperature)."""
    easy_mask: Annotated[float, Enters("fit")] = Field(default=0.0, ge=0, lt=1)
    """For likelihood: tokens that the LM itself finds most probable count this much less (published: 0.6, as a random mask)."""
    reweight: Annotated[Reweight, Enters("fit")] = "none"
    """For likelihood: tokens count with their probability under the LM (base; published), under the head (scaled), or alike."""
    alpha: Annotated[float, Enters("fit")] = Field(default=30.0, gt=0)
    """Steepness of soft cuts: nats per unit beyond the cut (published: 30)."""
    statistics: Annotated[bool, Enters("fit")] = False
    """Let truncations also read four statistics of the scaled distribution, as the published heads do; level token only."""
    top_logits: Annotated[int, Enters("features")] = Field(default=256, ge=1)
    """How many of a token's best logits are kept one by one; the rest in some 10 groups for each factor of 10."""
    first_text: Harmless[FirstText] = "options"  # keys of rollouts hold the policy itself
    """What samples the first rollouts: the options of the grid, as first_round says, or the LM itself (neutral values)."""
