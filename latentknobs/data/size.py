"""How much disk a run may need, said before it starts, and the refusal where there is less.

Upper bounds: every response as long as it may get, every prompt with as many pairs as it may give.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from latentknobs.errors import RunError
from latentknobs.heads.features import width
from latentknobs.heads.option_head import head_shape
from latentknobs.heads.segmenters import Every, Sequence, parse_level
from latentknobs.learners.lpo import PairRule

TOKEN = 7 + 12 + 4  # bytes of a token in a line of JSON: its id, its text (escaped), and what separates the numbers
LINE = 400  # bytes of a response aside from its tokens: the line around them, its scores, its place among the pairs
HEADER = 4096  # bytes at the beginning of a shard


class Settings(Protocol):
    """What the estimate reads of a `TrainConfig`."""

    features: tuple[str, ...]
    feature_dtype: Literal["float32", "bfloat16"]
    level: str
    hidden: int | None
    rank: int | None
    rollouts: int
    rounds: int
    pair_rule: PairRule
    pairs_per_prompt: int
    max_new_tokens: int
    shard_size: int
    eval_size: int
    eval_seeds: int
    tune_size: int


@dataclass(frozen=True)
class Size:
    """Most bytes that a run takes, by kind, and what the features are made of.

    Attributes:
        rollouts: responses of all rounds, with their scores and pairs.
        features: of the responses in pairs, of all rounds.
        evaluation: responses of every policy to held-out prompts, and of every constant to training prompts.
        heads: heads of all rounds, the adapter, and a checkpoint beside the one that it replaces.
        F, K, dtype: features and options of a segment, and the number format of the former.
        responses: how many are in pairs.
        segments: most that one of them has.
    """

    rollouts: int
    features: int
    evaluation: int
    heads: int
    F: int
    K: int
    dtype: str
    responses: int
    segments: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.rollouts + self.features + self.evaluation + self.heads

    def sentence(self) -> str:
        """For people, before the run starts."""
        return (
            f"A segment takes {bytes_per_segment(self.F, self.K, self.dtype):,} bytes ({self.F:,} features in {self.dtype}, "
            f"{self.K} option{'s'[: self.K != 1]}): at most {amount(self.features)} for {self.responses:,} responses of "
            f"{self.segments:,} segment{'s'[: self.segments != 1]}. The whole run takes at most {amount(self.total)} of disk."
        )


def bytes_per_segment(F: int, K: int, dtype: str) -> int:
    """Of one row of the store: features, table (float32), option (int64), and base log-probability (float32)."""
    return F * getattr(torch, dtype).itemsize + 4 * K + 8 + 4


def estimate(config: Settings, hidden_size: int, K: int, prompts: int, given: int | None = None) -> Size:
    """The size of a run.

    Args:
        hidden_size: D of the language model.
        prompts: how many are answered in each round.
        given: responses of preferences from elsewhere, which take the place of the first round's.
    """
    F = width(config.features, hidden_size) + 1  # the entropy, for the baseline
    rounds = config.rounds - (given is not None)  # in which responses are sampled
    pairs = min(config.pairs_per_prompt, config.rollouts // 2) if config.pair_rule == "best_worst" else 1
    responses = 2 * pairs * prompts * rounds + (given or 0)
    segments = _most_segments(config.level, config.max_new_tokens)
    shards = responses // config.shard_size + config.rounds
    judged = config.eval_size * config.eval_seeds * (K + 4) + config.tune_size * K if config.eval_size else 0
    response = LINE + config.max_new_tokens * (TOKEN + len(str(K - 1)))
    main, entropy = (_head_values(inputs, *head_shape(inputs, config.hidden, config.rank), K) for inputs in (F, 1))
    return Size(
        rollouts=response * (prompts * config.rollouts * rounds + (given or 0)),
        features=responses * (segments * bytes_per_segment(F, K, config.feature_dtype) + 16) + shards * (HEADER + 16 * F),
        evaluation=response * judged,
        heads=4 * (main * (config.rounds + 9) + entropy),
        F=F, K=K, dtype=config.feature_dtype, responses=responses, segments=segments,
    )  # fmt: skip


def _head_values(inputs: int, hidden: int, rank: int, K: int) -> int:
    """Weights, biases and the scaler."""
    seen = rank or inputs
    return inputs * rank + hidden * (seen + hidden + K + 2) + K + 2 * inputs


def check_space(path: Path, size: Size) -> None:
    """Refuses a run that its disk may not hold. Files of earlier stages in `path` count as free: they are kept or replaced.

    Raises:
        RunError: naming what is needed and what is there.
    """
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    kept = sum(
        file.stat().st_size
        for part in ("round-*", "tuning", "evaluation")
        for file in path.glob(f"{part}/**/*")
        if file.is_file()
    )
    free = shutil.disk_usage(folder).free
    if size.total > free + kept:
        shorter = "Set feature_dtype to bfloat16, lower" if size.dtype == "float32" else "Lower"
        raise RunError(
            f"The run may need {amount(size.total - kept)} of disk, and {amount(free)} are free at {str(path)!r}. "
            f"{size.sentence()} {shorter} train_prompts, pairs_per_prompt, rollouts or max_new_tokens, or choose another "
            "output_dir."
        )


def amount(size: int) -> str:
    """Bytes for people, e.g. `1.3 GB`; a GB is 10^9 bytes.

    >>> amount(2084), amount(1_340_000_000)
    ('2,084 bytes', '1.3 GB')
    """
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:,} bytes"


def _most_segments(level: str, tokens: int) -> int:
    segmenter = parse_level(level, token_ids=(0,))  # which tokens delimit does not matter: each might
    if isinstance(segmenter, Sequence):
        return 1
    return -(-tokens // segmenter.n) if isinstance(segmenter, Every) else tokens
