"""The state of a fit, so that it can be saved at any step and resumed bit by bit the same."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from latentknobs.config import TrainConfig
from latentknobs.errors import RunError
from latentknobs.training.checkpoint import Checkpoint, Saved


class FitState:
    """A module, its optimiser, and what decides the next steps; each moves the module `updates` times."""

    def __init__(self, module: nn.Module, config: TrainConfig, updates: int = 1) -> None:
        self.module = module
        self.optimiser = torch.optim.AdamW(module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        self.schedule = get_scheduler(name, self.optimiser, config.warmup * updates, config.steps * updates)
        self.generator = torch.Generator().manual_seed(config.seed)  # draws the examples of each step
        self.step = 0  # how many are done
        self.best, self.best_loss = self._weights(), math.inf  # at the step with the least validation loss
        self.best_watched, self.stale = -math.inf, 0  # of the metric that early stopping watches, and checks since then

    def judge(self, loss: float, watched: float) -> None:
        """Records a validation."""
        if loss < self.best_loss:
            self.best, self.best_loss = self._weights(), loss
        self.stale = 0 if watched > self.best_watched else self.stale + 1
        self.best_watched = max(watched, self.best_watched)

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves the state to a checkpoint."""
        moments = self.optimiser.state_dict()["state"]
        tensors = {
            **{f"module.{name}": value for name, value in self._weights().items()},
            **{f"best.{name}": value for name, value in self.best.items()},
            **{f"optimiser.{n}.{name}": value for n, state in moments.items() for name, value in state.items()},
            "generator": self.generator.get_state(),
            "scores": torch.tensor([self.best_loss, self.best_watched], dtype=torch.float64),  # infinite ones too
        }
        checkpoint.save(self.step, tensors, {"stale": self.stale, "schedule": self.schedule.state_dict()})

    def restore(self, saved: Saved) -> None:
        """Goes back to where `save` was; RunError if it is of a module with other sizes."""
        tensors = saved.tensors
        weights, best = _under("module.", tensors), _under("best.", tensors)
        if {name: value.shape for name, value in weights.items()} != {name: v.shape for name, v in self._weights().items()}:
            raise RunError("The checkpoint is of a module with other sizes. Delete it to train from the beginning.")
        self.module.load_state_dict(weights)
        self.best = {name: value.to(device_of(self.module)) for name, value in best.items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for path, value in _under("optimiser.", tensors).items():
            number, _, name = path.partition(".")
            moments.setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.schedule.load_state_dict(saved.facts["schedule"])
        for group, rate in zip(self.optimiser.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.generator.set_state(tensors["generator"])
        self.best_loss, self.best_watched = tensors["scores"].tolist()
        self.stale, self.step = int(saved.facts["stale"]), saved.step

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.module.state_dict().items()}


def _under(prefix: str, tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    return next(module.parameters()).device
