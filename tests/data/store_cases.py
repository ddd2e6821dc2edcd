"""Random segments for the tests of the feature store."""

import torch

from latentknobs.data.featurise import Featurised
from latentknobs.data.moments import Moments
from latentknobs.data.segment_batches import FeatureCache, Segments
from latentknobs.learners.lpo import Responses


def make_cache(seed: int, lengths: list[int], dtype: torch.dtype = torch.float32, F: int = 5, K: int = 3) -> FeatureCache:
    """Responses of so many segments; option 0 can produce each, every other option loses it now and then."""
    rng = torch.Generator().manual_seed(seed)
    N = sum(lengths)
    feature_NF = torch.randn(N, F, generator=rng, dtype=torch.float64).to(dtype)
    logps_NK = -torch.rand(N, K, generator=rng, dtype=torch.float64)
    logps_NK[:, 1:] = logps_NK[:, 1:].masked_fill(torch.rand(N, K - 1, generator=rng) < 0.2, -torch.inf)
    logps_NK = logps_NK.to(torch.float64 if dtype == torch.float64 else torch.float32)
    option_N = torch.randint(0, K, (N,), generator=rng)
    start_R1 = torch.tensor([0, *lengths]).cumsum(0)
    columns = {"logps_NK": logps_NK, "option_N": option_N, "base_N": logps_NK[:, 0] - 1}
    return FeatureCache(feature_NF, columns, start_R1)


def padded(segments: Segments) -> tuple[torch.Tensor, Responses]:
    """(U, S, F) features, and responses as the definitions of the losses want them, each segment standing as one token."""
    mask_US = segments.mask_US

    def pad(rows_M: torch.Tensor) -> torch.Tensor:
        out = rows_M.new_zeros(*mask_US.shape, *rows_M.shape[1:])
        out[mask_US] = rows_M
        return out

    segment_US = torch.arange(mask_US.shape[1]).expand_as(mask_US)
    logps, option, base = (pad(segments[name]) for name in ("logps_NK", "option_N", "base_N"))
    return pad(segments.feature_MF), Responses(logps, segment_US, mask_US, option, base)


def as_made(cache: FeatureCache, unreachable: tuple[int, ...] = (), keep_N: torch.Tensor | None = None) -> Featurised:
    """As if `featurise` had made it, and left out all but `keep_N`."""
    keep_N = torch.ones(len(cache.feature_NF), dtype=torch.bool) if keep_N is None else keep_N
    return Featurised(cache.where(keep_N), Moments.of(cache.feature_NF), unreachable, int((~keep_N).sum()), len(keep_N))
