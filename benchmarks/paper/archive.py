"""Rollouts of training, compressed between runs: latentknobs reads and writes plain JSONL, recipes keep compressed JSONL.

What the arena plays is compressed as it is written; see `arena`.
"""

import gzip
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROLLOUTS = "fit/*/round-*/rollouts/*.jsonl"  # of all heads of a recipe


@contextmanager
def unpacked(folder: Path) -> Iterator[None]:
    """Training rollouts as plain files inside, so that nothing is sampled again; compressed after, unless something failed."""
    for packed in sorted(folder.glob(f"{ROLLOUTS}.gz")):
        plain, partial = packed.with_suffix(""), packed.with_suffix(".partial")
        with gzip.open(packed, "rb") as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
        partial.replace(plain)
        packed.unlink()
    yield
    for plain in sorted(folder.glob(ROLLOUTS)):
        packed, partial = plain.with_name(f"{plain.name}.gz"), plain.with_suffix(".partial")
        with plain.open("rb") as source, gzip.GzipFile(partial, "wb", compresslevel=6, mtime=0) as target:
            shutil.copyfileobj(source, target)
        partial.replace(packed)
        plain.unlink()
