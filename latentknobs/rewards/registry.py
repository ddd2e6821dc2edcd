"""From a reward's name to the reward: entry points of the group `latentknobs.rewards`. Listing imports nothing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from latentknobs.errors import ConfigError, PluginError, UnknownNameError, did_you_mean

GROUP = "latentknobs.rewards"
RewardFunction = Callable[..., Sequence[float | None]]
"""`reward(prompts, completions, **columns) -> list[float | None]`, as in TRL; see `latentknobs.rewards`."""


def reward_names() -> list[str]:
    """The names of all installed rewards, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def resolve_reward(spec: str | RewardFunction) -> RewardFunction:
    """The reward a user asked for: a callable, `"repetition"`, or `"repetition:n=4"` (settings after the colon).

    Raises:
        UnknownNameError: nobody registered the name.
        PluginError: the entry point cannot be imported, or two distributions offer the name.
        ConfigError: the settings do not fit the reward, or `spec` is neither a text nor callable.
    """
    return find_reward(spec)[0]


def find_reward(spec: str | RewardFunction) -> tuple[RewardFunction, dict[str, Any] | None]:
    """What `resolve_reward` gives, and where it came from: entry point, distribution and settings. A callable has no origin."""
    if not isinstance(spec, str):
        if callable(spec):
            return spec, None
        raise ConfigError(f"{spec!r} is no reward. Give a name ({', '.join(reward_names())}) or a callable.")
    name, _, tail = spec.partition(":")
    point = _entry_point(name)
    target = _load(point)
    if not isinstance(target, type) and tail:
        raise ConfigError(f"The reward {name!r} is a plain function and takes no settings: write {name!r}, not {spec!r}.")
    settings = _settings(spec, tail, target)
    try:
        made: RewardFunction = target(**settings) if isinstance(target, type) else target
    except TypeError as error:
        raise ConfigError(f"The reward {spec!r} cannot be made: {error}. Write it as 'name:key=value,...'.") from error
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
    return made, {"entry point": f"{name} = {point.value}", "distribution": distribution, "settings": settings}


def _entry_point(name: str) -> EntryPoint:
    points = {(point.value, point.dist.name if point.dist else "?"): point for point in entry_points(group=GROUP, name=name)}
    if not points:
        raise UnknownNameError(f"There is no reward {name!r}. {did_you_mean(name, reward_names())}")
    if len(points) > 1:
        owners = " and ".join(f"{value!r} of {owner}" for value, owner in points)
        raise PluginError(f"Two plugins offer the reward {name!r}: {owners}. Uninstall one, or pass the callable itself.")
    return next(iter(points.values()))


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        owner = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
        raise PluginError(
            f"The reward {point.name!r} cannot be loaded: entry point '{point.name} = {point.value}' of {owner} failed with "
            f"{type(error).__name__}: {error}. Repair or uninstall it; other rewards are not affected."
        ) from error


def _settings(spec: str, tail: str, target: Callable[..., Any]) -> dict[str, Any]:
    """The settings; a comma separates two only where a name and an equals sign follow it."""
    settings: dict[str, Any] = {}
    parameters = inspect.signature(target).parameters if tail else {}
    for item in filter(None, re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", tail)):
        key, equals, value = item.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(f"The setting {item!r} of the reward {spec!r} is not of the form key=value.")
        wanted = parameters.get(key.strip())
        is_text = wanted is not None and (wanted.annotation is str or str(wanted.annotation).startswith("str"))
        settings[key.strip()] = value.strip() if is_text else _value(value.strip())
    return settings


def _value(text: str) -> Any:
    """A whole number, a decimal number, true or false, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
