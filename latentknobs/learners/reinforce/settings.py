"""The settings of REINFORCE: how the gradient is estimated, and under which budgets."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from latentknobs.stages import Enters

Estimator = Literal["marginal", "score"]
Baseline = Literal["leave_one_out", "group", "mean", "none"]
Group = Literal["best", "majority"]


def _several(value: Any) -> Any:
    """One number, or `1,4,8` as it stands on a command line, as several."""
    return value.split(",") if isinstance(value, str) else (value,) if isinstance(value, int) else value


Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_several)]


class Settings(BaseModel):
    """The settings that only `reinforce` has."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, allow_inf_nan=False)

    estimator: Annotated[Estimator, Enters("fit")] = "marginal"
    """marginal sums over the options that may have drawn a token; score takes those that were sampled (the paper)."""
    baseline: Annotated[Baseline, Enters("fit")] = "leave_one_out"
    """What is taken off a reward: leave_one_out, group (over the prompt's deviation), mean (of the step), or none."""
    normalise: Annotated[bool, Enters("fit")] = True
    """Divide the advantages of a step by their root mean square."""
    entropy_bonus: Annotated[float, Enters("fit")] = Field(default=0.01, ge=0)
    """Weight of the head's mean entropy (nats), added to what is maximised."""
    max_prob: Annotated[float | None, Enters("fit")] = Field(default=None, gt=0, le=1)
    """Leave out segments whose first token the LM is at least this sure of (paper: 0.95); by default none."""
    updates: Annotated[int, Enters("fit")] = Field(default=1, ge=1)
    """Updates of the head on the rollouts of a step; from the second on, with importance weights."""
    clip_ratio: Annotated[float, Enters("fit")] = Field(default=0.2, gt=0, lt=1)
    """Importance weights further than this from 1 teach nothing more."""
    parallel: Annotated[Counts, Enters("fit")] = Field(default=(1,), min_length=1)
    """Parallel budgets B: so many responses to a prompt earn one reward together. Steps take turns."""
    group: Annotated[Group, Enters("fit")] = "best"
    """What B responses earn: the best of their rewards (Pass@B of 0 and 1), or that of their majority answer."""
    vote: Annotated[str | None, Enters("fit")] = None
    """For majority: the answer of a response is its last number after this text; by default its last number."""
    imitate: Annotated[str | None, Enters("fit")] = None
    """A policy by name, such as a rule that was tuned by hand, that the head imitates before the first step."""
    token_budgets: Annotated[Counts, Enters("fit")] = ()
    """Token budgets to train for, at most max_new_tokens; steps take turns. By default max_new_tokens alone."""
