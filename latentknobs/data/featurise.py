"""Reading the frozen LM once for all training: features and a learner's columns of responses, by segment.

The LM is frozen, so nothing here depends on the head.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from latentknobs.data.columns import ALL, OPTION_LOGPS, Column, Reading, store_rows
from latentknobs.data.evidence import second_prompts
from latentknobs.data.moments import Moments
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.engines.base import Engine
from latentknobs.errors import UnreachableTokenError
from latentknobs.heads.features import needed_by, read_features
from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.space import KnobSpace
from latentknobs.likelihood import option_logps

Unreachable = Literal["refuse", "drop"]


@dataclass(frozen=True)
class Featurised:
    """What `featurise` returns of some responses."""

    cache: FeatureCache  # their segments. Every response keeps its place; an unreachable one has no segments
    moments: Moments  # of the features of all segments, also of those that `min_spread` left out, because decoding has them too
    unreachable: tuple[int, ...]  # indices of the responses that no option can produce
    skipped: int  # how many segments `min_spread` left out
    total: int  # how many segments there were, left out or not, without those of unreachable responses


def featurise(
    engine: Engine,
    prompts: Sequence[Prompt],
    rollouts: Sequence[Rollout],
    space: KnobSpace,
    segmenter: Segmenter,
    features: Sequence[str],
    columns: Mapping[str, Column] = ALL,
    *,
    floor: float | None = None,
    min_spread: float | None = None,
    unreachable: Unreachable = "refuse",
    dtype: torch.dtype | None = None,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    samples: int = 1,
    advance: Callable[[int], None] = lambda rows: None,
) -> Featurised:
    """The segments of some rollouts (at least one), in their order. Takes about twice the memory of what it returns.

    Args:
        engine: reads the responses.
        columns: what is kept beside the features.
        floor: least log-probability (nats) of a token; anything lower is raised to it. None keeps -inf.
        min_spread: leaves out segments whose log-probability differs by at most this (nats) between options, -inf differing
            without bound. At 0 these have no gradient under `latent`. None keeps all.
        unreachable: whether a response that no option can produce is an error or loses its segments.
        dtype: number format in which features are kept; None is as they are read.
        batch_size: responses in one forward pass; those of similar length are read together.
        max_new_tokens, samples: the budgets that the responses were sampled under, for features that read them.
        advance: called with the number of responses just read.

    Raises:
        UnreachableTokenError: no option can produce some segment, there is no floor, and `unreachable` is "refuse".
    """
    parts: dict[int, Featurised] = {}
    for batch in _by_length(prompts, rollouts, batch_size):
        questions, answers = [prompts[rollouts[r].prompt] for r in batch], [rollouts[r] for r in batch]
        observed = engine.observe(
            [prompt.ids for prompt in questions], [rollout.ids for rollout in answers], (*space.needs, *needed_by(features)),
            second_prompts=second_prompts(questions, space.needs), max_new_tokens=max_new_tokens, samples=samples,
        )  # fmt: skip
        for r, prompt, rollout, seen in zip(batch, questions, answers, observed, strict=True):
            hidden_TD, logits_TV, context = seen.hidden_ND, seen.logits_NV, seen if space.needs else None
            ids_T = torch.tensor(rollout.ids, device=logits_TV.device)
            logps_TK = option_logps(logits_TV, ids_T, space, context).clamp(min=-torch.inf if floor is None else floor).cpu()
            feature_TF = read_features(features, hidden_TD, logits_TV, seen.parts)
            feature_TF = feature_TF.to("cpu", dtype or feature_TF.dtype)
            previous_T = torch.tensor([prompt.ids[-1], *rollout.ids[:-1]])
            segment_T = segmenter.segments(previous_T)
            row_T, first_S, chosen_S = store_rows(columns, segment_T)
            reading = Reading(rollout, logits_TV, logps_TK)
            (logps_SK,) = (column.by_segment(reading, row_T, first_S) for column in OPTION_LOGPS.values())
            kept = {name: column.by_segment(reading, row_T, first_S) for name, column in columns.items()}
            cache = FeatureCache(feature_TF[chosen_S], kept, torch.tensor([0, len(first_S)]))
            why = _why_lost(logps_TK, row_T, logps_SK, prompt, rollout, space)
            if why and unreachable == "refuse":
                raise UnreachableTokenError(why)
            parts[r] = _one(cache, logps_SK, min_spread, is_lost=why is not None)
        advance(len(batch))
    return _join([parts[r] for r in range(len(rollouts))])


def _by_length(prompts: Sequence[Prompt], rollouts: Sequence[Rollout], batch_size: int) -> Iterator[list[int]]:
    """Indices of rollouts of similar length; the longest first, because a batch that does not fit should fail at once."""
    length_R = [len(prompts[rollout.prompt].ids) + len(rollout.ids) for rollout in rollouts]
    order = sorted(range(len(rollouts)), key=lambda r: -length_R[r])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _one(cache: FeatureCache, logps_SK: Tensor, min_spread: float | None, is_lost: bool) -> Featurised:
    """One response without the segments that `min_spread` leaves out."""
    if is_lost:
        cache, logps_SK = cache.where(torch.zeros(len(logps_SK), dtype=torch.bool)), logps_SK[:0]
    spread_S = logps_SK.amax(-1) - logps_SK.amin(-1)
    keep_S = torch.ones_like(spread_S, dtype=torch.bool) if min_spread is None else spread_S > min_spread
    skipped = int((~keep_S).sum())
    return Featurised(cache.where(keep_S), Moments.of(cache.feature_NF), (0,) if is_lost else (), skipped, len(keep_S))


def _join(parts: Sequence[Featurised]) -> Featurised:
    """Responses one after the other."""
    return Featurised(
        FeatureCache.join([part.cache for part in parts]),
        reduce(Moments.__add__, [part.moments for part in parts]),
        tuple(r for r, part in enumerate(parts) if part.unreachable),
        sum(part.skipped for part in parts),
        sum(part.total for part in parts),
    )


def _why_lost(
    logps_TK: Tensor, segment_T: Tensor, logps_SK: Tensor, prompt: Prompt, rollout: Rollout, space: KnobSpace
) -> str | None:
    """A sentence on the part of a response that no option can produce; None if options can produce all of it."""
    lost_T, lost_S = logps_TK.isneginf().all(-1), logps_SK.isneginf().all(-1)
    if not lost_S.any():
        return None
    if lost_T.any():
        t = int(lost_T.nonzero()[0])
        what = f"Token {t} (id {rollout.ids[t]})"
    else:  # each token has its options, but no option has all of them
        places = (segment_T == lost_S.nonzero()[0]).nonzero().squeeze(-1)
        what = f"The segment of tokens {int(places[0])} to {int(places[-1])}"
    return (
        f"{what} of a response to {prompt.text[:60]!r} has probability 0 under each of the "
        f"{space.K} options of {space!r}, so no option can get credit for it. Add an option that truncates "
        "nothing (e.g. top_p 1), or set `floor`, e.g. floor=-20."
    )
