"""One reward out of several: their weighted sum, with the parts kept apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from latentknobs.errors import ConfigError
from latentknobs.rewards.by_name import RewardFunction, find_reward, reward_names
from latentknobs.rewards.fingerprint import fingerprint
from latentknobs.rewards.identity import identity_of
from latentknobs.rewards.modules import UnreadableError


@dataclass(frozen=True)
class Part:
    """One of the rewards of a run.

    Attributes:
        name: as the user wrote it, or the name of the callable.
        weight: what its values are multiplied with in the sum; 0 only records them.
        origin: see `identity_of`.
    """

    name: str
    function: RewardFunction
    weight: float = 1.0
    origin: Mapping[str, Any] | None = None

    @property
    def identity(self) -> str | None:
        """See `identity_of` and `fingerprint`; None where the answers may depend on something that cannot be read."""
        return self._identified[0]

    @cached_property
    def item_identity(self) -> str | None:
        """The same where an answer stands for itself and may be kept alone.

        A callable without `version` may compare the completions of a call with each other; its answers are kept by whole files
        of scores, whose calls are always the same.
        """
        return identity_of(self.function, self.origin)

    @property
    def unread(self) -> str | None:
        """What that is, in words."""
        return self._identified[1]

    @cached_property
    def _identified(self) -> tuple[str | None, str | None]:
        """Found out once, because it may read a whole model, and before the reward is asked, because that may change it."""
        if self.item_identity is not None:
            return self.item_identity, None
        try:
            return fingerprint(self.function), None
        except UnreadableError as error:
            return None, str(error)


@dataclass(frozen=True)
class Rewards:
    """What `score_all` asks: one reward or several."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return " + ".join(part.name for part in self.parts)


RewardSpec = str | RewardFunction | Rewards | Sequence[str | RewardFunction]


def resolve_rewards(spec: RewardSpec, weights: Sequence[float] | None = None) -> Rewards:
    """The reward, or the weighted sum of the rewards, that a user asked for (TRL's `reward_funcs` and `reward_weights`).

    Args:
        spec: a name with optional settings, a callable, or a list of these. What this function returned comes back as it is.
        weights: one for each reward; None is 1 for each.

    Raises:
        UnknownNameError, PluginError: see `resolve_reward`.
        ConfigError: as there; or there is no reward; or not one weight for each; or the weights are no numbers, or all 0.
    """
    if isinstance(spec, Rewards):
        return spec
    specs = list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
    if not specs:
        raise ConfigError(f"The list of rewards is empty. Give at least one: {', '.join(reward_names())}, or a callable.")
    checked = [1.0] * len(specs) if weights is None else _checked(weights, len(specs))
    found = [(_name(one), *find_reward(one)) for one in specs]
    return Rewards(
        tuple(Part(name, function, weight, origin) for (name, function, origin), weight in zip(found, checked, strict=True))
    )


def reward_identity(reward: RewardSpec) -> str | None:
    """A hash that changes when scores may change, None where nothing tells: then every run has to ask again.

    A name is known by its entry point, the version of its distribution, the code of its module, its settings, and the files
    and model folders that these name. A callable is known by an attribute `version` (text or number) if it has one, otherwise by
    its code and all that this reaches (`fingerprint`). Of several rewards all must be known; their weights count.
    """
    parts = resolve_rewards(reward).parts
    known = [(part.identity, part.weight) for part in parts]
    return None if any(name is None for name, _ in known) else hashlib.sha256(repr(known).encode()).hexdigest()


def _checked(weights: Sequence[float], n: int) -> list[float]:
    if len(weights) != n:
        raise ConfigError(f"There are {len(weights)} reward_weights {list(weights)} for {n} rewards. Give one for each.")
    if not all(isinstance(w, int | float) and math.isfinite(w) for w in weights):
        raise ConfigError(f"The reward_weights {list(weights)} must be finite numbers.")
    if not any(weights):
        raise ConfigError(f"The reward_weights {list(weights)} are all 0, so every response would be worth the same.")
    return [float(w) for w in weights]


def _name(spec: Any) -> str:
    return spec if isinstance(spec, str) else str(getattr(spec, "__name__", type(spec).__name__))
