"""The check of a knob class, shared by entry points, `register` and knob objects."""

import math
import re
from typing import Any

from latentknobs.errors import PluginError
from latentknobs.knobs.context import KNOB_PARTS
from latentknobs.knobs.knob import API_VERSION, OLDEST_API_VERSION, ContextKnob, DecodingKnob, Stage

SEE = "See docs/write-a-knob.md."


def check_class(cls: Any, where: str) -> None:
    """PluginError if a class does not keep the contract of `DecodingKnob`; `where` is how the message names it."""
    if not (isinstance(cls, type) and issubclass(cls, DecodingKnob)):
        raise PluginError(f"{where} is {cls!r}, which is not a subclass of latentknobs.DecodingKnob. {SEE}")
    _check_version(cls, where)
    wanted = ("name", "stage", "neutral", *(("needs",) if issubclass(cls, ContextKnob) else ()))
    if missing := [variable for variable in wanted if not hasattr(cls, variable)]:
        raise PluginError(f"{where} does not set the class variable(s) {', '.join(missing)}. {SEE}")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise PluginError(f"{where} does not implement {', '.join(missing)}. {SEE}")
    _check_values(cls, where)


def _check_version(cls: type[DecodingKnob], where: str) -> None:
    window = f"{OLDEST_API_VERSION} to {API_VERSION}" if OLDEST_API_VERSION < API_VERSION else str(API_VERSION)
    written = f"{where} was written for version {cls.api_version} of the knob contract; this latentknobs knows {window}."
    if cls.api_version > API_VERSION:
        raise PluginError(f"{written} Upgrade latentknobs.")
    if cls.api_version < OLDEST_API_VERSION:
        raise PluginError(f"{written} Upgrade the plugin.")


def _check_values(cls: type[DecodingKnob], where: str) -> None:
    if not (isinstance(cls.name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", cls.name)):
        raise PluginError(f"{where} is named {cls.name!r}. Write the name in lower_snake_case, e.g. 'top_p'.")
    if not isinstance(cls.stage, Stage):
        stages = ", ".join(f"Stage.{stage.name}" for stage in Stage)
        raise PluginError(f"{where} declares the stage {cls.stage!r}. Choose one of {stages}.")
    if isinstance(cls.neutral, bool) or not isinstance(cls.neutral, int | float) or not math.isfinite(cls.neutral):
        raise PluginError(f"{where} declares the neutral value {cls.neutral!r}. It must be a finite number.")
    if issubclass(cls, ContextKnob) and (not cls.needs or set(cls.needs) - set(KNOB_PARTS)):
        raise PluginError(f"{where} declares needs={cls.needs!r}. Name one or more of {', '.join(KNOB_PARTS)}.")
