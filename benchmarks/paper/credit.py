"""Eq. 11 as printed, for a sequence-level head: the marginal of every token under the one distribution of its response.

latentknobs takes the exact marginal of a segment, log sum_k pi_k prod_t P(y_t | k). The paper writes
sum_t log sum_k pi_k P(y_t | k) at both levels. The two agree at token level only; here the second is fitted, from the same
rollouts and pairs.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.fitting import fit_pairs
from benchmarks.paper.worlds import World
from latentknobs.adapter import KnobAdapter
from latentknobs.config import make_config
from latentknobs.data.examples import Pair
from latentknobs.data.featurise import featurise
from latentknobs.data.prompts import is_held_out
from latentknobs.data.segment_batches import FeatureCache
from latentknobs.engines.transformers import TransformersEngine
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.training.round_data import load_round


def spread_credit(adapter: KnobAdapter, run: Path, world: World, settings: dict[str, Any]) -> KnobAdapter:
    """The adapter of a finished sequence-level run, with a head fitted to per-token marginals instead.

    Args:
        run: the run directory, whose rollouts and pairs of round 1 are used again.
    """
    data = load_round(run, 1)
    used = sorted({n for pair in data.pairs for n in (pair.chosen, pair.rejected)})
    place = {n: i for i, n in enumerate(used)}
    rollouts = [data.rollouts[n] for n in used]
    engine = TransformersEngine(world.model, world.tokenizer)
    read = featurise(engine, data.prompts, rollouts, adapter.space, Every(1), adapter.features)
    cache = of_first_token(read.cache)
    config = make_config({name: value for name, value in settings.items() if "reward" not in name} | {"objective": "latent"})
    parts: dict[bool, list[Pair]] = {True: [], False: []}
    for pair in data.pairs:
        held = is_held_out(f"validation {data.prompts[pair.prompt].text}", config.validation)  # as training holds out
        parts[held].append(Pair(pair.prompt, place[pair.chosen], place[pair.rejected]))
    torch.manual_seed(config.seed)
    head = OptionHead(adapter.space, cache.feature_NF.shape[1], config.hidden, config.factorised, config.rank)
    head.fit_scaler(*cache.moments())
    adapter.head = fit_pairs(head, adapter.space, Every(1), cache, parts[False], parts[True], config)
    return adapter


def of_first_token(cache: FeatureCache) -> FeatureCache:
    """The cache with every token of a response reading what its first token reads."""
    first_N = torch.repeat_interleave(cache.start_R1[:-1], cache.start_R1.diff())
    return replace(cache, feature_NF=cache.feature_NF[first_N])
