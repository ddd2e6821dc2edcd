"""The head of a run on policy, without its rival, which would sample as many responses again."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentknobs.config import TrainConfig
from latentknobs.learners.base import Inputs
from latentknobs.learners.reinforce.learner import Reinforce
from latentknobs.models.sources import Sources
from latentknobs.training.checkpoint import Checkpoint
from latentknobs.training.rundir import RunDir
from latentknobs.training.steps import OnPolicy


def heads(config: TrainConfig, inputs: Inputs, sources: Sources, points: Sequence[int], folder: Path) -> dict[int, nn.Module]:
    """The heads after so many steps each, and after the last. An interrupted run goes on, with the points that are left.

    Args:
        folder: of the checkpoint, the metrics and the scores.
    """
    learner, found = Reinforce(config["learner"], inputs), dict[int, nn.Module]()
    with RunDir(folder) as run:
        lesson = OnPolicy(run, config, sources, {"main": learner}, 1)
        torch.manual_seed(config.seed)
        module = learner.module(*lesson.moments("main")).to(sources.engine.device)

        def log(row: dict[str, Any]) -> None:
            run.log(row)
            if row["step"] in points:
                found[row["step"]] = copy.deepcopy(module).eval()

        found[config.steps] = lesson.learn("main", module, Checkpoint(folder / "checkpoint", ""), log)
    return found
