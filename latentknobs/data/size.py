"""A warning before a run whose features may not fit on its disk. They are the largest files of a run."""

import shutil
from pathlib import Path

import torch
from rich.filesize import decimal

from latentknobs.heads.segmenters import parse_level


def most_segments(level: str, tokens: int) -> int:
    """Of a response of so many tokens; each of them might be a delimiter."""
    return int(parse_level(level, token_ids=(0,)).segments(torch.zeros(1, tokens, dtype=torch.long)).max()) + 1


def disk_warning(path: Path, size: int) -> str | None:
    """A sentence where `size` bytes of features may not fit beside what is in `path`; features there count as free."""
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in path.glob("round-*/features/*"))
    if size <= free:
        return None
    return (
        f"The features may take {decimal(size)} of disk, and {decimal(free)} are free at {str(path)!r}. A run that fills its "
        "disk stops and can be resumed. feature_dtype=bfloat16, or lower train_prompts, pairs_per_prompt or max_new_tokens, need "
        "less."
    )
