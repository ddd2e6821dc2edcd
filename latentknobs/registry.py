"""From a knob's name to the knob: entry points of the group `latentknobs.knobs`, and `register` for the current process.

Listing imports nothing. A plugin that cannot be imported fails only for whoever asks for it, and the error names the
entry point, the distribution and the version. Two plugins of one name never shadow each other silently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from latentknobs.errors import ConfigError, PluginError, UnknownNameError, did_you_mean
from latentknobs.knob import API_VERSION, DecodingKnob

GROUP = "latentknobs.knobs"
KnobSpec = str | Mapping[str, Sequence[float]] | DecodingKnob

_registered: dict[str, type[DecodingKnob]] = {}


@dataclass(frozen=True)
class Source:
    """Where a knob name comes from."""

    name: str
    distribution: str
    version: str
    value: str

    def __str__(self) -> str:
        return f'entry point "{self.name} = {self.value}" of {self.distribution} {self.version}'


def sources() -> list[Source]:
    """Every knob on offer, by name, without importing any of them."""
    found = {_source(point): None for point in entry_points(group=GROUP)}
    here = [Source(n, "this process", "-", f"{c.__module__}:{c.__qualname__}") for n, c in _registered.items()]
    return sorted([*found, *here], key=lambda source: (source.name, source.distribution))


def names() -> list[str]:
    """Names of all knobs, sorted."""
    return sorted({source.name for source in sources()})


def register(knob: type[DecodingKnob]) -> type[DecodingKnob]:
    """Offers a knob class under its name in this process; usable as a decorator.

    Raises:
        PluginError: the class breaks the contract, or an installed plugin or another class has the name already.
    """
    _check_class(knob, f"register({getattr(knob, '__qualname__', knob)!s})")
    taken = [source for source in sources() if source.name == knob.name]
    if _registered.get(knob.name) is knob:
        return knob
    if taken:
        raise PluginError(
            f"register({knob.__qualname__}) wants the name {knob.name!r}, which {taken[0]} already has. "
            f"Give the class another `name`."
        )
    _registered[knob.name] = knob
    return knob


def knob_class(name: str) -> type[DecodingKnob]:
    """The class behind `name`, or behind `distribution:name` when two plugins clash.

    Raises:
        UnknownNameError: nobody registered the name.
        PluginError: the plugin is broken, too new, or shares the name with another one.
    """
    distribution, _, bare = name.rpartition(":")
    if bare in _registered and distribution in ("", "this process"):
        return _registered[bare]
    points = {_source(p): p for p in entry_points(group=GROUP) if p.name == bare}
    points = {s: p for s, p in points.items() if distribution in ("", s.distribution)}
    if not points:
        raise UnknownNameError(f"There is no knob {name!r}. {did_you_mean(bare, names())}")
    if len(points) > 1:
        ways = " or ".join(f'"{s.distribution}:{s.name}"' for s in points)
        raise PluginError(f"Two plugins offer the knob {bare!r}: {' and '.join(map(str, points))}. Ask for {ways}.")
    source, point = next(iter(points.items()))
    try:
        loaded = point.load()
    except Exception as error:
        raise PluginError(
            f"The knob {bare!r} cannot be loaded: {source} failed with {type(error).__name__}: {error}. "
            f"Repair or uninstall {source.distribution}; other knobs are not affected."
        ) from error
    _check_class(loaded, str(source))
    if loaded.name != bare:
        raise PluginError(f"{source} holds a knob that calls itself {loaded.name!r}. The two names must be equal.")
    return loaded


def resolve(spec: KnobSpec) -> DecodingKnob:
    """The knob a user asked for: `"top_p"`, `"top_p:0.5,0.9,1"`, `{"top_p": [0.5, 0.9, 1]}`, or an instance.

    Raises:
        UnknownNameError, PluginError: see `knob_class`.
        GridError: the grid does not fit the knob.
        ConfigError: the specification has none of these forms.
    """
    if isinstance(spec, DecodingKnob):
        return spec
    if isinstance(spec, str):
        name, grid = _split(spec)
        cls = knob_class(name)
        return cls(options=grid) if grid is not None else _default(cls)
    if isinstance(spec, Mapping) and len(spec) == 1:
        ((name, options),) = spec.items()
        return knob_class(str(name))(options=options)
    raise ConfigError(
        f"{spec!r} does not name a knob. Write a name, 'name:0.5,0.9', {{'name': [0.5, 0.9]}}, or pass a knob object."
    )


def _split(spec: str) -> tuple[str, tuple[float, ...] | None]:
    """A name and, after the last colon, an optional grid: `distribution:name:0.1,0.2`."""
    name, colon, tail = spec.rpartition(":")
    if not colon or not (tail == "" or tail.strip()[:1] in "+-.0123456789"):
        return spec, None
    try:
        return name, tuple(float(value) for value in tail.split(",") if value.strip())
    except ValueError:
        raise ConfigError(f"The grid in {spec!r} is not a list of numbers. Write it as '{name}:0.5,0.9,1'.") from None


def _default(cls: type[DecodingKnob]) -> DecodingKnob:
    if cls.model_fields["options"].is_required():
        raise ConfigError(f"The knob {cls.name!r} has no default grid. Write one, e.g. '{cls.name}:0.5,1'.")
    return cls()


def _source(point: EntryPoint) -> Source:
    return Source(point.name, *((point.dist.name, point.dist.version) if point.dist else ("?", "?")), point.value)


def _check_class(cls: Any, where: str) -> None:
    if not (isinstance(cls, type) and issubclass(cls, DecodingKnob)):
        raise PluginError(f"{where} is {cls!r}, which is no subclass of latentknobs.DecodingKnob.")
    if missing := [field for field in ("name", "stage", "neutral") if not hasattr(cls, field)]:
        raise PluginError(f"{where} does not set the class variable(s) {', '.join(missing)}. See docs on writing a knob.")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise PluginError(f"{where} does not implement {', '.join(missing)}.")
    if cls.api_version > API_VERSION:
        raise PluginError(
            f"{where} was written for version {cls.api_version} of the knob contract; this latentknobs knows {API_VERSION}. "
            "Upgrade latentknobs."
        )
