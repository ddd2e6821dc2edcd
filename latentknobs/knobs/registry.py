"""From a knob's name to the knob: entry points of the group `latentknobs.knobs`, and `register` for the current process.

Listing imports nothing. A plugin that cannot be imported fails only where its name is used, and the error names the
entry point, the distribution and the version. Two plugins of one name never shadow each other silently, and no
plugin takes a name that this distribution ships.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from latentknobs.errors import ConfigError, PluginError, UnknownNameError, did_you_mean
from latentknobs.knobs.declaration import check_class
from latentknobs.knobs.knob import DecodingKnob

GROUP = "latentknobs.knobs"
OWN = "latentknobs"  # the distribution whose knob names are reserved
HERE = "this process"
KnobSpec = str | Mapping[str, Sequence[float]] | DecodingKnob

_registered: dict[str, type[DecodingKnob]] = {}


@dataclass(frozen=True)
class Source:
    """Where a knob name comes from. `value` is the `module:class` behind it; what this process registered has no version."""

    name: str
    distribution: str
    version: str
    value: str

    def __str__(self) -> str:
        if self.distribution == HERE:
            return f'"{self.name}", registered in this process by {self.value}'
        return f'entry point "{self.name} = {self.value}" of {self.distribution} {self.version}'

    @property
    def full_name(self) -> str:
        """The name that stays unambiguous whatever else is installed."""
        return f"{self.distribution}:{self.name}"


def sources() -> list[Source]:
    """Every knob on offer, by name, without importing any of them.

    What is installed is looked up once per `sys.path`; an unknown name looks again.
    """
    here = [Source(n, HERE, "", f"{c.__module__}:{c.__qualname__}") for n, c in _registered.items()]
    return sorted([*_points(), *here], key=lambda source: (source.name, source.distribution))


def names() -> list[str]:
    """Names of all knobs, sorted."""
    return sorted({source.name for source in sources()})


def register(knob: type[DecodingKnob]) -> type[DecodingKnob]:
    """Offers a knob class in this process, also as a decorator; PluginError if it breaks the contract or its name is taken."""
    where = f"register({getattr(knob, '__qualname__', knob)!s})"
    check_class(knob, where)
    if _registered.get(knob.name) is not knob:
        _check_free(knob, where)
        _registered[knob.name] = knob
    return knob


def knob_class(name: str) -> type[DecodingKnob]:
    """The class behind `name`, or behind `distribution:name` when two plugins clash.

    UnknownNameError if it is not registered; PluginError if its plugin is broken, of another version, or the name is not its own.
    """
    distribution, _, bare = name.rpartition(":")
    found = [source for source in sources() if source.name == bare]
    if not found:
        _scan.cache_clear()  # it may have been installed since
        found = [source for source in sources() if source.name == bare]
    built_in = next((source for source in found if source.distribution == OWN), None)
    if distribution or built_in:
        found = [source for source in found if source.distribution == (distribution or OWN)]
    if not found:
        raise UnknownNameError(f"There is no knob {name!r}. {did_you_mean(bare, names())}")
    if len(found) > 1:
        ways = " or ".join(f'"{source.full_name}"' for source in found)
        raise PluginError(f"Two plugins offer the knob {bare!r}: {' and '.join(map(str, found))}. Write {ways}.")
    if built_in not in (None, found[0]):
        raise PluginError(f"{found[0]} takes the name of {built_in}, which is reserved. The plugin must choose another name.")
    return _load(found[0])


def resolve(spec: KnobSpec) -> DecodingKnob:
    """The knob behind a user's `"top_p"`, `"top_p:0.5,0.9,1"`, `{"top_p": [0.5, 0.9, 1]}`, or an instance.

    A mapping's value may also be None for the default grid, or a mapping of all settings of a knob that has more than
    its grid.

    Raises:
        UnknownNameError, PluginError: see `knob_class`.
        GridError: the grid does not fit the knob.
        ConfigError: the specification is in none of these forms.
    """
    if isinstance(spec, DecodingKnob):
        return _checked(spec)
    if isinstance(spec, str):
        name, grid = _split(spec)
        return _built(knob_class(name), grid)
    if isinstance(spec, Mapping) and len(spec) == 1:
        ((name, options),) = spec.items()
        return _built(knob_class(str(name)), options)
    hint = f" Did you mean {spec.__name__}()?" if isinstance(spec, type) and issubclass(spec, DecodingKnob) else ""
    raise ConfigError(
        f"{spec!r} does not name a knob.{hint} Write a name, 'name:0.5,0.9', {{'name': [0.5, 0.9]}}, or pass a knob object."
    )


def source_of(knob: DecodingKnob | type[DecodingKnob]) -> Source:
    """Where a knob's class came from; `this process` for a class that no installed distribution offers."""
    cls = knob if isinstance(knob, type) else type(knob)
    offers = [source for source in sources() if source.name == cls.name and _is(source, cls)]
    return offers[0] if offers else Source(cls.name, HERE, "", f"{cls.__module__}:{cls.__qualname__}")


def _points() -> dict[Source, EntryPoint]:
    """Entry points by source. One distribution found twice on the path is one source."""
    return _scan(entry_points, tuple(sys.path))


@lru_cache(maxsize=1)
def _scan(look_up: Callable[..., Iterable[EntryPoint]], path: tuple[str, ...]) -> dict[Source, EntryPoint]:
    return {
        Source(point.name, *((point.dist.name, point.dist.version) if point.dist else ("?", "?")), point.value): point
        for point in look_up(group=GROUP)
    }


def _load(source: Source) -> type[DecodingKnob]:
    if source.distribution == HERE:
        return _registered[source.name]
    try:
        loaded = _points()[source].load()
    except Exception as error:
        raise PluginError(
            f"The knob {source.name!r} cannot be loaded: {source} failed with {type(error).__name__}: {error}. "
            f"Repair or uninstall {source.distribution}; other knobs are not affected."
        ) from error
    check_class(loaded, str(source))
    if loaded.name != source.name:
        raise PluginError(f"{source} holds a knob that calls itself {loaded.name!r}. The two names must be equal.")
    found: type[DecodingKnob] = loaded
    return found


def _is(source: Source, cls: type[DecodingKnob]) -> bool:
    """Whether `source` offers exactly this class. A broken plugin offers nothing."""
    if source.value == f"{cls.__module__}:{cls.__qualname__}":
        return True
    try:
        return _load(source) is cls
    except PluginError:
        return False


def _checked(knob: DecodingKnob) -> DecodingKnob:
    """A knob object, checked as `register` checks a class."""
    cls = type(knob)
    where = f"The knob object {knob!r} of class {cls.__module__}.{cls.__qualname__}"
    check_class(cls, where)
    if not any(source.name == cls.name and _is(source, cls) for source in sources()):
        _check_free(cls, where)
    return knob


def _check_free(cls: type[DecodingKnob], where: str) -> None:
    if taken := [source for source in sources() if source.name == cls.name]:
        raise PluginError(f"{where} wants the name {cls.name!r}, which {taken[0]} already has. Give the class another `name`.")


def _split(spec: str) -> tuple[str, tuple[float, ...] | None]:
    """A name and, after the last colon, an optional grid: `distribution:name:0.1,0.2`."""
    name, colon, tail = spec.rpartition(":")
    if not colon:
        return spec, None
    try:
        return name, tuple(float(value) for value in tail.split(",") if value.strip())
    except ValueError:
        if tail.strip()[:1] in "+-.0123456789" or name in names():
            raise ConfigError(f"The grid in {spec!r} is not a list of numbers. Write it as '{name}:0.5,0.9,1'.") from None
    return spec, None


def _built(cls: type[DecodingKnob], grid: object) -> DecodingKnob:
    if isinstance(grid, Mapping):
        return cls(**grid)
    if grid is not None:
        return cls(options=grid)
    if cls.model_fields["options"].is_required():
        raise ConfigError(f"The knob {cls.name!r} has no default grid. Write one, e.g. '{cls.name}:0.5,1'.")
    return cls()
