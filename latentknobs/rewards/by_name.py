"""From a reward's name to the reward (entry-point group `latentknobs.rewards`)."""

from collections.abc import Callable, Sequence
from typing import Any

from latentknobs import entry_points
from latentknobs.errors import ConfigError

RewardFunction = Callable[..., Sequence[float | None]]
"""`reward(prompts, completions, **columns) -> list[float | None]`, as in TRL; see `latentknobs.rewards`."""


def reward_names() -> list[str]:
    """The names of all installed rewards, sorted."""
    return entry_points.names("reward")


def resolve_reward(spec: str | RewardFunction) -> RewardFunction:
    """The reward a user asked for: a callable, `"repetition"`, or `"repetition:n=4"` (settings after the colon).

    Raises:
        UnknownNameError, PluginError, ConfigError: see `entry_points.resolve`; or `spec` is neither a text nor callable.
    """
    return find_reward(spec)[0]


def find_reward(spec: str | RewardFunction) -> tuple[RewardFunction, dict[str, Any] | None]:
    """What `resolve_reward` gives, and where it came from: entry point, distribution and settings. A callable has no origin."""
    if isinstance(spec, str):
        return entry_points.resolve("reward", spec)
    if callable(spec):
        return spec, None
    raise ConfigError(f"{spec!r} is not a reward. Give a name ({', '.join(reward_names())}) or a callable.")
