"""From a name to what an installed package offers under it: rewards, policies, learners and engines.

A user writes `name` or `name:key=value,...`; each kind of thing has an entry-point group `latentknobs.KINDs`. Listing imports
nothing, and a broken package fails only where it is named. Knobs have a registry of their own (`knobs.registry`), because
they carry grids and reserved names.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from latentknobs.errors import ConfigError, PluginError, UnknownNameError, did_you_mean


def group_of(kind: str) -> str:
    """The entry-point group of a kind: `reward`, `policy`, `learner` or `engine`."""
    return f"latentknobs.{kind[:-1]}ies" if kind.endswith("y") else f"latentknobs.{kind}s"


def names(kind: str) -> list[str]:
    """The names of everything installed of a kind, sorted."""
    return sorted({point.name for point in points(kind)})


def points(kind: str) -> list[EntryPoint]:
    """All entry points of a kind, sorted by name."""
    return sorted(entry_points(group=group_of(kind)), key=lambda point: (point.name, point.value))


def owner(point: EntryPoint) -> str:
    """The distribution of an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def split(spec: str) -> tuple[str, str]:
    """The name and the settings of `name:key=value,...`; the settings are empty where there is no colon."""
    name, _, tail = spec.partition(":")
    return name, tail


def load(kind: str, name: str) -> Any:
    """What the entry point of a name holds; UnknownNameError if there is none, PluginError if it is broken or there are two."""
    return _loaded(kind, find(kind, name))


def resolve(kind: str, spec: str, **extra: Any) -> tuple[Any, dict[str, Any]]:
    """The object that `name` or `name:key=value,...` names, and its origin: entry point, distribution and settings.

    A class or factory is called with the settings, and with those of `extra` that it takes; anything else is returned as it is.
    Errors: see `load`; ConfigError if the settings do not fit.
    """
    name, tail = split(spec)
    point = find(kind, name)
    target = _loaded(kind, point)
    origin: dict[str, Any] = {"entry point": f"{name} = {point.value}", "distribution": owner(point), "settings": {}}
    if not isinstance(target, type) and kind == "reward":  # a function is the reward itself
        if tail:
            raise ConfigError(f"The {kind} {name!r} is a plain function and takes no settings: write {name!r}, not {spec!r}.")
        return target, origin
    settings = parse_settings(kind, spec, target)
    signature = inspect.signature(target)
    try:
        arguments = signature.bind(**{key: value for key, value in extra.items() if key in signature.parameters}, **settings)
        found = target(*arguments.args, **arguments.kwargs)
    except TypeError as error:
        raise ConfigError(f"The {kind} {spec!r} cannot be created: {error}. Write it as 'name:key=value,...'.") from error
    return found, origin | {"settings": settings}


def with_example(kind: str, spec: str) -> str:
    """A name without settings together with those that its attribute `example` proposes: `uniform:temperature=0.5,1`."""
    name, tail = split(spec)
    example = "" if tail else getattr(load(kind, name), "example", "")
    return f"{name}:{example}" if example else spec


def find(kind: str, name: str) -> EntryPoint:
    """The entry point of a name; see `load` for the errors."""
    found = entry_points(group=group_of(kind), name=name)
    offers = {(point.value, point.dist.name if point.dist else "?"): point for point in found}
    if not offers:
        raise UnknownNameError(f"There is no {kind} {name!r}. {did_you_mean(name, names(kind))}")
    if len(offers) > 1:
        owners = " and ".join(f"{value!r} of {name}" for value, name in offers)
        raise PluginError(f"Two plugins offer the {kind} {name!r}: {owners}. Uninstall one, or pass the object itself.")
    return next(iter(offers.values()))


def parse_settings(kind: str, spec: str, target: Callable[..., Any]) -> dict[str, Any]:
    """The settings in a spec, `key=value` (or ConfigError); a comma in front of another `key=` separates two."""
    settings: dict[str, Any] = {}
    tail = split(spec)[1]
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(target).parameters if tail else {}
    for item in filter(None, re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", tail)):
        key, equals, value = item.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(f"The setting {item!r} of the {kind} {spec!r} is not of the form key=value.")
        wanted = parameters.get(key.strip())
        is_text = wanted is not None and (wanted.annotation is str or str(wanted.annotation).startswith("str"))
        settings[key.strip()] = value.strip() if is_text else _value(value.strip())
    return settings


def _loaded(kind: str, point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise PluginError(
            f"The {kind} {point.name!r} cannot be loaded: entry point '{point.name} = {point.value}' of {owner(point)} failed "
            f"with {type(error).__name__}: {error}. Repair or uninstall it; nothing else is affected."
        ) from error


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
