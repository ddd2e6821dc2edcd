"""Rows of data: from JSON lines, a Hugging Face dataset by name or as an object, or a plain list.

Not supported, on purpose: streaming by name, datasets that bring code of their own, and guesses at column names.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentknobs.errors import DataError, did_you_mean, first_line
from latentknobs.files import MB, parse_json, path_of

DATASET = "dataset:"
LONGEST = 64 * MB  # characters of a line
FORM = f"{DATASET}NAME, {DATASET}NAME:SPLIT or {DATASET}NAME:CONFIG:SPLIT"
FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # local files: suffix -> reader
INSTEAD = {"chosen": "completion", "rejected": "completion"}  # columns of texts without a comparison
FORMS = {
    "prompt": '{"prompt": "...", ...}; other columns reach the reward.',
    "chosen": '{"prompt": ..., "chosen": ..., "rejected": ...}; for likelihood also {"prompt": ..., "completion": ...}.',
}


def read_rows(source: str | Path | Iterable[Any], needs: Sequence[str] = ("prompt",), what: str = "prompts") -> list[Any]:
    """Rows of a source, in its order.

    Args:
        source: path of a JSONL file; `dataset:NAME[:SPLIT]` or `dataset:NAME:CONFIG:SPLIT`, NAME being a hub id, a folder of
            `save_to_disk` or of data files, or a file (json, jsonl, csv, parquet); a `datasets.Dataset`; or any rows.
        needs: columns that a file or a dataset must have.
        what: what the rows are, for messages.

    Raises:
        DataError: the source cannot be read, is empty, has no such split, or lacks a column.
    """
    if isinstance(source, str) and source.startswith(DATASET):
        name, config, split = _parts(source)
        return _rows_of(_load(name, config, split), needs, f"The dataset {name!r}")
    if isinstance(source, str | Path):
        return read_jsonl(source, needs, what)
    if isinstance(source, Mapping):  # e.g. a DatasetDict, whose rows would be the names of its splits
        raise DataError(
            f"The {what} are a mapping with the keys {', '.join(map(str, source))}, not rows. "
            "Pass one split of it, e.g. dataset['train'], or a list of rows."
        )
    if not isinstance(source, Iterable):
        raise DataError(f"The {what} are {source!r}. Give a JSONL file, {FORM}, a dataset, or a list of rows.")
    if isinstance(source, Set):
        raise DataError(f"The {what} are a set, which has no order, so that no run could be repeated. Give them as a list.")
    return _rows_of(source, needs, "The dataset") if hasattr(source, "column_names") else list(source)


def read_jsonl(path: str | Path, needs: Sequence[str] = ("prompt",), what: str = "prompts") -> list[dict[str, Any]]:
    """Rows of a JSONL file; a DataError names the line that is not a JSON object with the columns it needs."""
    path = path_of(path)
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), ""), 1):
                if len(line) > LONGEST:
                    raise ValueError(f"line {number} is longer than {LONGEST:,} characters")
                if line.strip():
                    rows.append(_row(line.rstrip("\n"), number, path, needs))
    except DataError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(
            f"The {what} file {str(path)!r} cannot be read: {reason}. Give the path of a JSONL file, or {FORM}."
        ) from None
    if not rows:
        raise DataError(f"The {what} file {str(path)!r} is empty. Every line must be one JSON object: {FORMS[needs[0]]}")
    return rows


def _row(line: str, number: int, path: Path, needs: Sequence[str]) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        cause = getattr(error, "msg", error)
        raise DataError(
            f"Line {number} of {str(path)!r} is not JSON ({cause}): {line[:80]!r}. Every line must be one JSON object."
        ) from None
    if missing := [name for name in needs if not isinstance(row, dict) or (name not in row and INSTEAD.get(name) not in row)]:
        form = FORMS[needs[0]]
        raise DataError(f"Line {number} of {str(path)!r} has no `{missing[0]}`: {line[:80]!r}. Write it as {form}")
    return dict(row)


def _parts(source: str) -> tuple[str, str | None, str | None]:
    """Name, config and split. A colon inside brackets belongs to a slice: `train[:100]`."""
    rest = source.removeprefix(DATASET)
    parts = [rest] if os.path.exists(path_of(rest)) else re.split(r":(?![^\[]*\])", rest)
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise DataError(f"{source!r} is not a dataset. Write {FORM}.")
    name, *others = parts
    return name, others[0] if len(others) == 2 else None, others[-1] if others else None


def _load(name: str, config: str | None, split: str | None) -> Any:
    """One split of a dataset by name; `train` by default."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"Reading the dataset {name!r} needs the package datasets. pip install latentknobs[datasets], or write the rows "
            "to a JSONL file."
        ) from None
    path = path_of(name)
    if not os.path.exists(path) and (name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix in FILES):
        raise DataError(f"There is no dataset at {name!r}. Give a folder, a file ({', '.join(FILES)}) or a hub id.")
    wanted = split or "train"
    try:
        with _quiet(datasets):
            if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
                return _saved(datasets.load_from_disk(str(path)), name, split)
            if path.is_file() and path.suffix not in FILES:
                ends = ", ".join(FILES)
                raise DataError(f"The file {str(path)!r} does not end in one of {ends}. Convert it, or load it in Python.")
            if path.is_file():
                return datasets.load_dataset(FILES[path.suffix], data_files=str(path), split=wanted)
            return datasets.load_dataset(str(path) if path.exists() else name, config, split=wanted)
    except DataError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise DataError(f"The dataset {name!r} cannot be loaded with split {wanted!r}: {reason}. Write {FORM}.") from error


def _saved(found: Any, name: str, split: str | None) -> Any:
    """The split of what `save_to_disk` wrote, which may have none."""
    if not isinstance(found, dict):
        if split is not None:
            raise DataError(f"The dataset {name!r} has no splits, so not {split!r} either. Write {DATASET}{name}.")
        return found
    if (split or "train") not in found:
        raise DataError(f"The dataset {name!r} has no split {split or 'train'!r}. {did_you_mean(split or 'train', found)}")
    return found[split or "train"]


def _rows_of(dataset: Any, needs: Sequence[str], called: str) -> list[Any]:
    columns = dataset.column_names
    missing = [name for name in needs if columns is not None and not {name, INSTEAD.get(name)} & {*columns}]
    if missing:
        raise DataError(
            f"{called} has no column `{missing[0]}`; its columns are: {', '.join(columns)}. "
            f"Rename one, e.g. dataset.rename_column({columns[0]!r}, {missing[0]!r})."
        )
    rows = list(dataset)
    if not rows:
        raise DataError(f"{called} has no rows. Choose another split.")
    return rows


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own progress bars, which would break ours."""
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
