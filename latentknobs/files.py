"""Untrusted files: paths as users write them, and JSON that is read in bounded memory and time.

Whatever is wrong with a file is one short paragraph: the file, what is wrong in it, and the reader's next step.
"""

import json
import os
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from latentknobs.errors import ConfigError, LatentKnobsError, first_line

MB = 2**20
LARGEST = 16 * MB  # bytes of a file that is read as a whole, where its reader allows no more
DEEPEST = 32  # levels of lists and objects in it
T = TypeVar("T")


def path_of(path: str | os.PathLike[str]) -> Path:
    """A path as the user meant it: a leading `~` is the home folder. ConfigError if no file can have such a name."""
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(f"{reprlib.repr(path)} is not a path: it is not text, or holds a character that no name of a file "
                          "can hold. Write it anew.") from None  # fmt: skip
    try:
        return Path(os.fsdecode(path)).expanduser()
    except RuntimeError:  # no such user
        return Path(os.fsdecode(path))


def read_text(path: Path, error: type[LatentKnobsError], cure: str, largest: int = LARGEST) -> str:
    """The text of a file of at most `largest` bytes; otherwise an `error`, whose message ends in `cure`, the next step."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            data = file.read(largest + 1)
        if len(data) > largest:
            raise ValueError(f"it is larger than {largest / MB:g} MB")
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as problem:
        raise error(
            f"{str(path)!r} cannot be read: {getattr(problem, 'strerror', None) or first_line(problem)}. {cure}"
        ) from None


def read_json(path: Path, kind: Any, error: type[LatentKnobsError], cure: str, largest: int = LARGEST) -> Any:
    """The data of a JSON file, as a type that pydantic knows; see `read_text` for the arguments."""
    text = read_text(path, error, cure, largest)
    try:
        return fit(parse_json(text), kind)
    except ValueError as problem:
        raise error(f"{str(path)!r} is damaged: {problem}. {cure}") from None


def parse_json(text: str) -> Any:
    """The data of a JSON text; a ValueError says in few words that it is not JSON, or is nested too deeply."""
    try:
        data = json.loads(text)
        if _is_deeper(data, DEEPEST):
            raise RecursionError
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    return data


def fit(data: Any, kind: Any) -> Any:
    """Data as a type that pydantic knows; a ValueError names the first place that does not fit, and how many more there are."""
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as problem:
        first, *more = problem.errors(include_url=False)
        place = ".".join(map(str, first["loc"])) or "it"
        what = first["msg"].removeprefix("Value error, ")
        rest = f", and {len(more)} more" if more else ""
        raise ValueError(f"{place} is {reprlib.repr(first['input']):.80}, but: {what[:1].lower()}{what[1:]}{rest}") from None


def public_name(path: str) -> str:
    """What a model may be called in public: a hub id as it is, of a folder only its own name, or the id it was loaded from.

    >>> public_name("/home/mia/models/SmolLM2-135M"), public_name("HuggingFaceTB/SmolLM2-135M")
    ('SmolLM2-135M', 'HuggingFaceTB/SmolLM2-135M')
    """
    if cached := re.search(r"/models--([^/]+?)--([^/]+)/snapshots/", path):
        return "/".join(cached.groups())
    is_id = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) and not os.path.exists(path_of(path))
    return path if is_id else Path(path).name


def without_folders(text: str) -> str:
    """A setting without the folders of the absolute paths in it: `dataset:/home/mia/rows:train` -> `dataset:rows:train`."""
    return re.sub(r"(?<![\w.~/-])~?/([^\s/:,'\"]+/)*(?=[^\s/:,'\"])", "", text)


def _is_deeper(data: dict[str, Any] | list[Any], levels: int) -> bool:
    """Whether data has more levels than so many; lists and objects are levels, and so is what is in the innermost."""
    inside = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return bool(inside) and (levels == 1 or any(_is_deeper(item, levels - 1) for item in inside if isinstance(item, dict | list)))
