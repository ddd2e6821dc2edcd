"""Heads fitted to pairs outside a run."""

from collections.abc import Callable, Sequence
from typing import Any

from latentknobs.config import TrainConfig
from latentknobs.data.examples import Pair
from latentknobs.data.segment_batches import Features
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Segmenter
from latentknobs.knobs.space import KnobSpace
from latentknobs.learners.base import Inputs
from latentknobs.learners.lpo.learner import LPO
from latentknobs.training.fit import fit


def fit_pairs(
    head: OptionHead, space: KnobSpace, segmenter: Segmenter, features: Features, pairs: Sequence[Pair], held_out: Sequence[Pair],
    config: TrainConfig, *, reference: OptionHead | None = None, log: Callable[[dict[str, Any]], None] = lambda row: None,
) -> OptionHead:  # fmt: skip
    """The head, trained by LPO with the settings of a config."""
    learner = LPO(config["learner"], Inputs(space, segmenter, config.features))
    train, others = ([pair.example for pair in side] for side in (pairs, held_out))
    fit(learner, head, features, train, others, config, reference=reference, log=log)
    return head
