"""The settings of LPO: which pairs are formed of scored rollouts, and the loss on them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from latentknobs.stages import Enters

Objective = Literal["latent", "tokens_separate", "tokens_printed", "tokens", "nll"]
LengthNorm = Literal["none", "mean"]
PairRule = Literal["best_worst", "correct_incorrect", "top_bottom"]


class Settings(BaseModel):
    """The settings that only `lpo` has."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, allow_inf_nan=False)

    objective: Annotated[Objective, Enters("fit")] = "latent"
    """Which loss: latent (Eq. 11), tokens_separate (Eq. 10 with a reference), tokens_printed (Eq. 10 as printed, without), tokens
    (Eq. 9) or nll."""
    beta: Annotated[float, Enters("fit")] = Field(default=0.1, gt=0)
    """Sharpness of the preference loss."""
    length_norm: Annotated[LengthNorm, Enters("fit")] = "none"
    """`mean` divides a response's score by its number of segments, `none` sums (the paper)."""
    pair_rule: Annotated[PairRule, Enters("examples")] = "best_worst"
    """best_worst; correct_incorrect (reward at least 0.5 or below); top_bottom (see `top`)."""
    top: Annotated[int, Enters("examples")] = Field(default=4, ge=1)
    """For top_bottom: chosen has the best second_reward among this many highest rewards, rejected mirrors it."""
    pairs_per_prompt: Annotated[int, Enters("examples")] = Field(default=1, ge=1)
    """For best_worst: also pair second best with second worst, and so on."""
    pair_weight: Annotated[Literal["equal", "margin"], Enters("examples")] = "equal"
    """equal, or margin: a pair counts by how far its rewards are apart, over the mean of all pairs."""
    entropy_bonus: Annotated[float, Enters("fit")] = Field(default=0.0, ge=0)
    """Weight of the head's mean entropy (nats), added to what is maximised: keeps it from deciding too early."""
    kl: Annotated[float, Enters("fit")] = Field(default=0.0, ge=0)
    """Weight of the mean KL(head, reference) per segment (nats), added to the loss: keeps it near what sampled the pairs."""
