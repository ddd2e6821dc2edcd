"""What several benchmarks share: heads fitted to pairs outside a run, and a place for figures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
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

WIDTH = 256  # of the heads of published figures; what is chosen by itself is narrower now, and level (docs/log.md)


def fit_pairs(
    head: OptionHead, space: KnobSpace, segmenter: Segmenter, features: Features, pairs: Sequence[Pair], held_out: Sequence[Pair],
    config: TrainConfig, *, reference: OptionHead | None = None, log: Callable[[dict[str, Any]], None] = lambda row: None,
) -> OptionHead:  # fmt: skip
    """The head, trained by LPO with the settings of a config."""
    learner = LPO(config["learner"], Inputs(space, segmenter, config.features))
    train, others = ([pair.example for pair in side] for side in (pairs, held_out))
    fit(learner, head, features, train, others, config, reference=reference, log=log)
    return head


def save(name: str, data: dict[str, Any]) -> None:
    """Writes the figures of an experiment to `runs/NAME/summary.json`."""
    (Path("runs") / name).mkdir(parents=True, exist_ok=True)
    (Path("runs") / name / "summary.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
