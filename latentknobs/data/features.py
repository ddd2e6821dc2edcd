"""The cache a head is trained on: features and likelihood tables of the responses in pairs, computed once.

The LM is frozen, so neither depends on the head. Rows are segments, not tokens: a segment has one option, hence its
features are those at its first token and its table is the sum of its tokens' tables. Training then never sees the
vocabulary, the LM, or the level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentknobs.context import Context
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import Rollout
from latentknobs.decoding.frozen import read_responses
from latentknobs.errors import UnreachableTokenError
from latentknobs.features import read_features
from latentknobs.likelihood import option_logps
from latentknobs.objectives import Responses
from latentknobs.segments import Segmenter
from latentknobs.space import KnobSpace


@dataclass(frozen=True)
class FeatureCache:
    """Segments of R responses, one after the other. N is the number of segments of all responses together.

    Attributes:
        feature_NF: features at the first token of each segment.
        logps_NK: log P(segment | option), the sum over its tokens, in nats.
        option_N: the option it was sampled with.
        base_N: log P(segment) under the LM without knobs.
        start_R1: (R + 1) where each response begins; the last entry is N.
    """

    feature_NF: Tensor
    logps_NK: Tensor
    option_N: Tensor
    base_N: Tensor
    start_R1: Tensor

    def gather(self, response_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) row indices of the segments of some responses and the mask of real ones."""
        length_B = self.start_R1[response_B + 1] - self.start_R1[response_B]
        offset_S = torch.arange(int(length_B.max()), device=length_B.device)
        mask_BS = offset_S < length_B.unsqueeze(1)
        return torch.where(mask_BS, self.start_R1[response_B].unsqueeze(1) + offset_S, 0), mask_BS

    def responses(self, row_BS: Tensor, mask_BS: Tensor) -> Responses:
        """The rows as the objectives want them, each segment standing as one token of its own."""
        segment_BS = torch.arange(row_BS.shape[1], device=row_BS.device).expand_as(row_BS)
        return Responses(self.logps_NK[row_BS], segment_BS, mask_BS, self.option_N[row_BS], self.base_N[row_BS])

    def to(self, device: torch.device) -> "FeatureCache":
        """The same rows on another device."""
        return FeatureCache(**{name: value.to(device) for name, value in self.__dict__.items()})

    def save(self, path: Path) -> None:
        """Writes a safetensors file, complete or not at all."""
        partial = path.with_suffix(".partial")
        save_file({name: value.contiguous() for name, value in self.__dict__.items()}, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "FeatureCache":
        """Reads what `save` wrote."""
        return cls(**load_file(path))


def featurise(
    model: Any,
    prompts: Sequence[Prompt],
    rollouts: Sequence[Rollout],
    space: KnobSpace,
    segmenter: Segmenter,
    features: Sequence[str],
    *,
    floor: float | None = None,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda rows: None,
) -> FeatureCache:
    """The cache of some rollouts, in their order.

    Args:
        floor: least log-probability (nats) of a token; anything lower is raised to it. None keeps -inf.
        advance: called with the number of responses just read.

    Raises:
        UnreachableTokenError: a token has probability 0 under every option, and there is no floor.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for start in range(0, len(rollouts), batch_size):
        batch = rollouts[start : start + batch_size]
        read = read_responses(model, [prompts[r.prompt].ids for r in batch], [r.ids for r in batch])
        for rollout, (hidden_TD, logits_TV) in zip(batch, read, strict=True):
            ids_T = torch.tensor(rollout.ids, device=logits_TV.device)
            context = Context.of_response(prompts[rollout.prompt].ids, rollout.ids, logits_TV.device) if space.needs else None
            logps_TK = option_logps(logits_TV, ids_T, space, context)
            _check_reachable(logps_TK, rollout, prompts[rollout.prompt], space, floor)
            if floor is not None:
                logps_TK = logps_TK.clamp(min=floor)
            previous_T = torch.tensor([prompts[rollout.prompt].ids[-1], *rollout.ids[:-1]])
            segment_T = segmenter.segments(previous_T.unsqueeze(0)).squeeze(0)
            feature_TF = read_features(features, hidden_TD, logits_TV)
            base_T = logits_TV.float().log_softmax(-1).gather(-1, ids_T.unsqueeze(-1)).squeeze(-1)
            parts.append(_by_segment(segment_T, feature_TF.cpu(), logps_TK.cpu(), base_T.cpu(), torch.tensor(rollout.options)))
        advance(len(batch))
    lengths_R = torch.tensor([0] + [len(part[0]) for part in parts])
    feature_NF, logps_NK, option_N, base_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return FeatureCache(feature_NF, logps_NK, option_N, base_N, lengths_R.cumsum(0))


def _by_segment(
    segment_T: Tensor, feature_TF: Tensor, logps_TK: Tensor, base_T: Tensor, option_T: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first_S = torch.searchsorted(segment_T, torch.arange(int(segment_T[-1]) + 1))
    logps_SK = torch.zeros(len(first_S), logps_TK.shape[1], dtype=logps_TK.dtype).index_add(0, segment_T, logps_TK)
    base_S = torch.zeros(len(first_S)).index_add(0, segment_T, base_T)
    return feature_TF[first_S], logps_SK, option_T[first_S], base_S


def _check_reachable(logps_TK: Tensor, rollout: Rollout, prompt: Prompt, space: KnobSpace, floor: float | None) -> None:
    lost_T = logps_TK.isneginf().all(-1)
    if floor is None and bool(lost_T.any()):
        t = int(lost_T.nonzero()[0])
        raise UnreachableTokenError(
            f"Token {t} (id {rollout.ids[t]}) of a response to {prompt.text[:60]!r} has probability 0 under each of the "
            f"{space.K} options of {space!r}, so no option can be given credit for it. Add an option that truncates "
            "nothing (e.g. top_p 1), or set `floor`, e.g. floor=-20."
        )
