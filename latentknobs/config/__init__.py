"""Every setting of `train()`, the YAML file and the command line, in sections (`sections.py`).

A setting is written in its section, `learner: {name: lpo, beta: 0.2}`, or flat, `beta: 0.2`; both are the same. The learner's
section holds its name and the settings that the learner itself declares, so an outside package brings its own.
"""

import hashlib
import json
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from latentknobs import entry_points
from latentknobs.config.files import read_yaml
from latentknobs.config.sections import LEARNER, LEARNER_STAGES, SECTIONS, Schedule
from latentknobs.data.disk import write_text
from latentknobs.engines.base import expand
from latentknobs.errors import ConfigError, PluginError, did_you_mean
from latentknobs.stages import Enters, Stage

__all__ = [
    "DEFAULT_LEARNER", "OBJECT", "SECTIONS", "Schedule", "Setting", "TrainConfig", "every_field", "fields", "flat", "make_config",
    "read_yaml", "write_yaml",
]  # fmt: skip

OBJECT = "(a Python object)"  # in place of a value that a file cannot hold
DEFAULT_LEARNER = "lpo"
SHORT = Repr()  # of values in messages: bounded, whatever a file holds
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 80, 80
NAMED = ("model", LEARNER)  # sections whose `name` is written `model: NAME` for short


@dataclass(frozen=True)
class Setting:
    """A field of a section."""

    section: str
    name: str
    alias: str  # its flat name
    info: FieldInfo
    enters: Enters  # the stages whose keys hold it


@cache
def fields(learner: str = DEFAULT_LEARNER) -> dict[str, Setting]:
    """Every setting by its flat name, in the order of the sections; errors as `entry_points.load`.

    A field of a learner that is called like one of another section has no flat name: it is known as `learner.NAME`.
    """
    found: dict[str, Setting] = {}
    own = {field for kind in SECTIONS.values() if kind is not None for field in kind.model_fields}
    name = FieldInfo(annotation=str, default=DEFAULT_LEARNER, description="What learns: an installed learner.")
    for section, kind in SECTIONS.items():
        known = {"name": name} | _settings_of(learner).model_fields if kind is None else kind.model_fields
        for field, info in known.items():
            alias = section if field == "name" and section in NAMED else field
            if kind is None and alias in own:
                alias = f"{LEARNER}.{field}"
            enters = next((mark for mark in info.metadata if isinstance(mark, Enters)), None)
            found[alias] = Setting(section, field, alias, info, enters or Enters(*(kind.stages if kind else LEARNER_STAGES)))
    return found


def every_field() -> dict[str, dict[str, Setting]]:
    """Every setting by its flat name and then by learner, in the order of `fields`, of all installed learners that work."""
    found: dict[str, dict[str, Setting]] = {}
    for learner in sorted(entry_points.names("learner"), key=DEFAULT_LEARNER.__ne__):
        with suppress(PluginError, AttributeError):  # of a learner that is broken nothing is known
            for name, one in fields(learner).items():
                found.setdefault(name, {})[learner] = one
    sections = list(SECTIONS)
    return dict(sorted(found.items(), key=lambda item: sections.index(next(iter(item[1].values())).section)))


class TrainConfig:
    """The settings of a run. Everything has a default; the defaults train on the packaged testbed, offline.

    `config.beta` is a setting by its flat name, `config["learner"]` a section. Of the learner's section that is an instance of
    the learner's own `Settings`; its name is `config.learner`.

    Args:
        layers: settings, flat or in sections; later ones win, and those by keyword over all.

    Attributes:
        changed: flat names of the settings that were not left at their defaults.

    Raises:
        ConfigError, UnknownNameError: an unknown setting, learner or engine, or a value that does not fit.
    """

    __slots__ = ("_learner", "_sections", "changed")

    def __init__(self, *layers: Mapping[str, Any], **settings: Any) -> None:
        nested = _merge([*layers, settings])
        name = self._learner = nested[LEARNER].pop("name")
        kinds = {section: kind or _settings_of(name) for section, kind in SECTIONS.items()}
        own = _merge([getattr(entry_points.load("learner", name), "defaults", {})])
        own[LEARNER] = {}
        self._sections = {section: _validated(kind, own[section] | nested[section], section) for section, kind in kinds.items()}
        known = fields(name).values()
        self.changed = frozenset(one.alias for one in known if one.name in nested[one.section] or one.alias == LEARNER)
        entry_points.find("engine", entry_points.split(expand(self.engine))[0])

    def __getitem__(self, section: str) -> BaseModel:
        return self._sections[section]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or (setting := fields(self._learner).get(name)) is None:
            raise AttributeError(f"There is no setting {name!r}.")
        return self._learner if name == LEARNER else getattr(self._sections[setting.section], setting.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainConfig) and self.sections() == other.sections()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"TrainConfig({', '.join(f'{name}={self.flat()[name]!r}' for name in sorted(self.changed))})"

    def sections(self) -> dict[str, dict[str, Any]]:
        """Every setting as plain data, by section."""
        plain = {section: model.model_dump(mode="json") for section, model in self._sections.items()}
        return plain | {LEARNER: {"name": self._learner} | plain[LEARNER]}

    def flat(self) -> dict[str, Any]:
        """Every setting as plain data, by its flat name."""
        sections = self.sections()
        return {alias: sections[one.section][one.name] for alias, one in fields(self._learner).items()}

    def replace(self, **settings: Any) -> "TrainConfig":
        """The same with some settings changed."""
        return make_config(self.chosen(), settings)

    def chosen(self) -> dict[str, Any]:
        """The settings that were not left at their defaults, by flat name."""
        return {name: value for name, value in self.flat().items() if name in self.changed}

    def digest(self, stage: Stage | None = None, then: str = "") -> str:
        """A hash of the settings that a stage depends on (None: of all) and of `then`, an earlier digest.

        A setting enters the stages of its section unless its definition says otherwise: see `latentknobs.stages`.
        """
        known = fields(self._learner)
        values = {name: value for name, value in self.flat().items() if stage is None or stage in known[name].enters.stages}
        return hashlib.sha256(json.dumps([values, then], sort_keys=True).encode()).hexdigest()[:16]


def make_config(*layers: Mapping[str, Any]) -> TrainConfig:
    """The config of some settings, flat or in sections; later ones win. Errors: see `TrainConfig`."""
    return TrainConfig(*layers)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file holds them, flat or in sections, by their flat names. Values are not looked at."""
    nested = _merge([settings])
    known = fields(nested[LEARNER]["name"])
    values = {one.alias: nested[one.section][one.name] for one in known.values() if one.name in nested[one.section]}
    return values if LEARNER in settings else {name: value for name, value in values.items() if name != LEARNER}


def write_yaml(config: TrainConfig, path: Path, names: Container[str] | None = None) -> None:
    """Writes all settings (or those of some names) by section, defaults included, with their help as comments."""
    known = {name: one for name, one in fields(config.learner).items() if names is None or name in names}
    write_text(path, "\n".join(_lines(config, known)) + "\n")


def _lines(config: TrainConfig, known: Mapping[str, Setting]) -> Iterator[str]:
    for section, values in config.sections().items():
        if section not in (one.section for one in known.values()):
            continue
        kind = SECTIONS[section]
        yield f"# {kind.__doc__}" if kind else "# The learner and its own settings."
        yield f"{section}:"
        for one in known.values():
            if one.section == section:
                value = yaml.safe_dump({one.name: values[one.name]}, default_flow_style=True, width=10**6).strip()[1:-1]
                yield f"  # {' '.join(str(one.info.description).split())}\n  {value}"
        yield ""


def _settings_of(learner: str) -> type[BaseModel]:
    settings: type[BaseModel] = entry_points.load("learner", learner).Settings
    return settings


def _merge(layers: list[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """All layers by section, the learner's name included."""
    nested: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS} | {LEARNER: {"name": DEFAULT_LEARNER}}
    for layer in layers:
        spec = layer.get(LEARNER)
        own = dict(spec) if isinstance(spec, Mapping) else {} if spec is None else _from_spec(str(spec))
        if own.setdefault("name", nested[LEARNER]["name"]) != nested[LEARNER]["name"]:
            nested[LEARNER] = {}  # settings of another learner
        nested[LEARNER] |= own
        known = fields(own["name"])
        for key, value in layer.items():
            value = str(value) if isinstance(value, Path) else value
            if key == LEARNER:
                continue
            if key in SECTIONS and isinstance(value, Mapping):
                nested[key] |= value
            elif key in known:
                nested[known[key].section][known[key].name] = value
            else:
                near = did_you_mean(str(key), {**known, **SECTIONS})
                of = "" if own["name"] == DEFAULT_LEARNER else f" with the learner {own['name']!r}"
                raise ConfigError(f"There is no setting {str(key)[:80]!r}{of}. {_owners(str(key))}{near}")
    return nested


def _owners(key: str) -> str:
    """A sentence on the installed learners that have a setting of this name, if there are any."""
    found = sorted(map(repr, every_field().get(key, {})))
    names = " and ".join(found)
    return f"It is a setting of the learner {names}: choose that with learner=, or leave it out. " if names else ""


def _from_spec(spec: str) -> dict[str, Any]:
    """`name` or `name:key=value,...`."""
    name = entry_points.split(spec)[0]
    return entry_points.parse_settings("learner", spec, _settings_of(name)) | {"name": name}


def _validated(kind: type[BaseModel], values: Mapping[str, Any], section: str) -> BaseModel:
    if unknown := [name for name in values if name not in kind.model_fields]:
        near = did_you_mean(str(unknown[0]), kind.model_fields)
        raise ConfigError(f"There is no setting {str(unknown[0])[:80]!r} in the section {section!r}. {near}")
    try:
        for name, value in values.items():
            if isinstance(value, bool) and kind.model_fields[name].annotation in (int, float, int | None, float | None):
                raise ConfigError(f"The setting {name}={value!r} is not a number. Write one, e.g. {name}=1.")
        return kind(**values)
    except ValidationError as error:
        faults = [f"{_name(section, e['loc'])}={SHORT.repr(e['input'])}: {e['msg'].lower()}" for e in error.errors()[:3]]
        text = "; ".join(faults)
        raise ConfigError(f"The settings do not fit: {text}. `latentknobs train --help` explains each one.") from None


def _name(section: str, place: tuple[int | str, ...]) -> str:
    field = str(place[0]) if place else section
    return section if field == "name" and section in NAMED else field
