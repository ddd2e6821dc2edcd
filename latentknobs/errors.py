"""Every error this project raises: one root, and each is also the builtin a caller would expect.

A message states the fact, the user's own input, and the next step, in one paragraph.
"""

import difflib
from collections.abc import Iterable


class LatentKnobsError(Exception):
    """Root of all errors raised on purpose by latentknobs."""


class UnknownNameError(LatentKnobsError, LookupError):
    """A knob, reward, level or objective was named that is not registered."""


class GridError(LatentKnobsError, ValueError):
    """A knob's option grid is empty, unsorted, repeated, not finite or out of the knob's range."""


class SpaceError(LatentKnobsError, ValueError):
    """A knob space is invalid: without knobs, with a knob twice, or with an unknown name in its order or subset."""


class PluginError(LatentKnobsError, ImportError):
    """An entry point could not be imported or does not hold what its group requires."""


class ConfigError(LatentKnobsError, ValueError):
    """A setting from Python, YAML or the command line is wrong."""


class DataError(LatentKnobsError, ValueError):
    """A prompts file is missing or malformed, or a prompt does not fit the model."""


class RewardError(LatentKnobsError, ValueError):
    """A reward scored nothing, returned the wrong number of values, or cannot score one row."""


class BrokenRewardError(RewardError):
    """A reward that cannot score any row, so that calling it row by row is useless."""


class NoExamplesError(LatentKnobsError, ValueError):
    """The scored rollouts hold no example for the learner."""


class NoPairsError(NoExamplesError):
    """The scored rollouts hold no preference pair."""


class UnreachableTokenError(LatentKnobsError, ValueError):
    """A response holds a token that no option of the space can produce."""


class AdapterError(LatentKnobsError, ValueError):
    """An adapter folder is incomplete, of another version, or for another model."""


class LogitsError(LatentKnobsError, ValueError):
    """A row of logits is not a distribution, or a target or option is not one of its tokens or options."""


class DecodingError(LatentKnobsError, RuntimeError):
    """`generate` was called in a way that the attached policy does not support."""


class EngineError(LatentKnobsError, RuntimeError):
    """The server of an engine does not answer, refuses a request, or ignores a part of it."""


class RunError(LatentKnobsError, RuntimeError):
    """A run directory is in use, damaged, or belongs to another run."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters, without its full stop; its kind where it says nothing."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text in UTF-8: byte {error.start + 1} of what was read is {error.object[error.start]:#04x}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = next((n for n, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)  # `What follows:` is half of it
    return " ".join(lines[: first + 1])[:300].rstrip(".:")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an unknown-name message: the nearest name, if any is near, and the full list.

    >>> did_you_mean("temprature", ["temperature", "top_p"])
    'Did you mean "temperature"? Known: temperature, top_p.'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{hint}Known: {', '.join(names) or '(none)'}."
