"""Settings as command-line options, by their flat names. They are parsed here and checked by `make_config`."""

import re
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
import yaml

from latentknobs.config import DEFAULT_LEARNER, OBJECT, Setting, every_field, fields, flat, read_yaml
from latentknobs.config.sections import LEARNER
from latentknobs.entry_points import load
from latentknobs.errors import ConfigError

LISTS = ("knobs", "order", "features", "rival_features", "reward", "reward_weights", "trackers")
NAMES = r",(?!\s*inf\b)(?=\s*[A-Za-z_])"  # `temperature,top_p:0.5,1` is two knobs: a comma separates where a name follows it
SEPARATORS = {"reward": None, "reward_weights": ","}  # a reward may hold commas of its own: one reward per option
F = TypeVar("F", bound=Callable[..., Any])


def config_options(*names: str, default: str | None = None) -> Callable[[F], F]:
    """Adds an option for each of these fields, in their order (without names for all, those of every learner included).

    `default` is what the help says in place of the field's own default.
    """

    def decorate(command: F) -> F:
        known = {name: {DEFAULT_LEARNER: fields()[name]} for name in fields() if name in names} if names else every_field()
        for name, settings in reversed(known.items()):
            if name.isidentifier():  # otherwise the learner's name for it is another section's: --learner NAME:setting=value
                command = _option(name, settings, default)(command)
        return command

    return decorate


def parse_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings on the command line, as Python values."""
    return {name: _parsed(name, value) for name, value in flags.items() if value not in (None, ())}


def run_settings(run: Path, names: Iterable[str]) -> dict[str, Any]:
    """Some settings of a finished run; ConfigError if one was a Python object, which a file cannot hold."""
    saved = flat(read_yaml(run / "config.yaml"))
    settings = {name: value for name, value in saved.items() if name in names and value is not None}
    for name, value in settings.items():
        check_repeatable(name, value, run)
    return settings


def check_repeatable(name: str, value: Any, where: Path) -> None:
    """Refuses a setting, or an item of a list, that is a Python object."""
    if any(str(item).endswith(OBJECT) for item in (value if isinstance(value, list | tuple) else [value])):
        raise ConfigError(
            f"In {str(where)!r} the setting {name} was a Python object: {str(value)[:200]}. Give --{name.replace('_', '-')} by "
            "name here, or use latentknobs.evaluate(...) from Python."
        )


def _option(name: str, settings: Mapping[str, Setting], default: str | None) -> Callable[[F], F]:
    flag, info = "--" + name.replace("_", "-"), next(iter(settings.values())).info
    if info.annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=_help(name, settings, default))
    kinds = "|".join(dict.fromkeys(_metavar(name, one.info.annotation) for one in settings.values()))
    return click.option(flag, name, multiple=name in LISTS, metavar=kinds, help=_help(name, settings, default))


def _help(name: str, settings: Mapping[str, Setting], default: str | None) -> str:
    """What a setting means and its default; by learner where it is the learner's, or where its default is."""
    own = next(iter(settings.values())).section == LEARNER and name != LEARNER
    texts: dict[str, list[str]] = {}
    for learner, one in settings.items():
        text = f"{' '.join(str(one.info.description).split())}  [default: {default or _shown(one.info.default)}"
        texts.setdefault(text, []).append(learner)
    if own:
        return "  ".join(f"({', '.join(learners)}) {text}]" for text, learners in texts.items())
    others = {learner: getattr(load("learner", learner), "defaults", {}).get(name) for learner in settings}
    also = "".join(f"; {learner}: {_shown(value)}" for learner, value in others.items() if value is not None and not default)
    return f"{next(iter(texts))}{also}]"


def _parsed(name: str, value: Any) -> Any:
    if name == "reward_weights" and value in (("null",), ("none",)):
        return None
    if name in LISTS:
        items = [item for text in value for item in _split(text, SEPARATORS.get(name, NAMES))]
        return items[0] if name in ("order", "reward") and len(items) == 1 else items
    annotation = (fields().get(name) or next(iter(every_field()[name].values()))).info.annotation
    if isinstance(value, str) and str not in _types(annotation):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    return None if value in ("null", "none") and type(None) in _types(annotation) else value


def _split(text: str, separator: str | None) -> list[Any]:
    """The items of a list, cut at a regular expression, None for not at all. YAML works too."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            data = yaml.safe_load(text)
            return data if isinstance(data, list) else [data]
        except yaml.YAMLError:
            return [text]
    return [item.strip() for item in (re.split(separator, text) if separator else [text]) if item.strip()]


def _types(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _metavar(name: str, annotation: Any) -> str:
    kinds = [kind for kind in _types(annotation) if kind is not type(None)]
    if name in LISTS:
        return {"reward": "NAME", "reward_weights": "NUMBER,..."}.get(name, "NAME,...")
    if get_origin(kinds[0]) is Literal:
        return "|".join(map(str, get_args(kinds[0])))
    return {int: "INTEGER", float: "NUMBER"}.get(kinds[0], "TEXT")


def _shown(default: Any) -> str:
    if isinstance(default, tuple | list) and default:
        return ",".join(map(str, default))
    return "none" if default in (None, ()) else f"{default:g}" if isinstance(default, float) else str(default)
