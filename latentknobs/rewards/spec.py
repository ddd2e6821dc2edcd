"""From a specification to the reward: a name, a callable, or a weighted sum of several with the parts kept apart."""

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from latentknobs import entry_points
from latentknobs.errors import ConfigError
from latentknobs.rewards.identity import identity_of
from latentknobs.rewards.python_file import from_file, names_file

RewardFunction = Callable[..., Any]
"""`reward(prompts, completions, **columns) -> list[float | None]`, as in TRL; see `latentknobs.rewards`."""


@dataclass(frozen=True)
class Part:
    """One of the rewards of a run."""

    name: str  # as the user wrote it, or the name of the callable
    function: RewardFunction
    weight: float = 1.0  # what its values are multiplied with in the sum; 0 only records them
    origin: Mapping[str, Any] | None = None  # see `identity_of`

    @cached_property
    def identity(self) -> str | None:
        """See `identity_of`; None for a callable without `version`."""
        return identity_of(self.function, self.origin)


@dataclass(frozen=True)
class Rewards:
    """One reward or several."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return " + ".join(part.name for part in self.parts)

    @property
    def unversioned(self) -> tuple[str, ...]:
        """The callables without `version`: whether their scores would be the same today is not known."""
        return tuple(part.name for part in self.parts if part.identity is None)

    @property
    def key(self) -> str:
        """A hash that changes when scores may change; of what is unversioned only the name counts."""
        return hashlib.sha256(repr([(part.identity or part.name, part.weight) for part in self.parts]).encode()).hexdigest()


RewardSpec = str | RewardFunction | Rewards | Sequence[str | RewardFunction]


def reward_names() -> list[str]:
    """The names of all installed rewards, sorted."""
    return entry_points.names("reward")


def resolve_reward(spec: str | RewardFunction) -> RewardFunction:
    """One reward: a callable, `"repetition:n=4"`, or a Python file `"score.py"`. See `resolve_rewards` for the errors."""
    return _part(spec, 1.0).function


def resolve_rewards(spec: RewardSpec, weights: Sequence[float] | None = None) -> Rewards:
    """The reward, or the weighted sum of the rewards, that a user requests (TRL's `reward_funcs` and `reward_weights`).

    Args:
        spec: a name with optional settings, a Python file, a callable, or a list of these. `Rewards` are returned as they are.
        weights: one for each reward; None is 1 for each.

    Raises:
        UnknownNameError, PluginError, ConfigError: see `entry_points.resolve`.
        ConfigError: something is neither a text nor callable; there is no reward; or not one weight for each; or the weights
            are not finite, or all 0.
    """
    if isinstance(spec, Rewards):
        return spec
    specs = list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
    if not specs:
        raise ConfigError(f"The list of rewards is empty. Give at least one: {', '.join(reward_names())}, or a callable.")
    checked = [1.0] * len(specs) if weights is None else _checked(weights, len(specs))
    return Rewards(tuple(map(_part, specs, checked)))


def _part(spec: Any, weight: float) -> Part:
    if isinstance(spec, str):
        function, origin = from_file(spec) if names_file(spec) else entry_points.resolve("reward", spec)
        return Part(spec, function, weight, origin)
    if inspect.isclass(spec):
        raise ConfigError(f"The reward {spec.__name__} is a class: pass an object of it, as in reward={spec.__name__}().")
    if not callable(spec):
        raise ConfigError(f"{spec!r} is not a reward. Give a name ({', '.join(reward_names())}), a Python file or a callable.")
    inner = spec.func if isinstance(spec, functools.partial) else spec
    return Part(str(getattr(inner, "__name__", type(inner).__name__)), spec, weight)


def _checked(weights: Sequence[float], n: int) -> list[float]:
    if len(weights) != n:
        raise ConfigError(f"There are {len(weights)} reward_weights {list(weights)} for {n} rewards. Give one for each.")
    if not all(isinstance(w, int | float) and math.isfinite(w) for w in weights):
        raise ConfigError(f"The reward_weights {list(weights)} must be finite numbers.")
    if not any(weights):
        raise ConfigError(f"The reward_weights {list(weights)} are all 0, so every response would be worth the same.")
    return [float(w) for w in weights]
