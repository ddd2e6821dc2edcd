"""The optimiser loop: of a module, examples, and a learner's loss. It does not depend on the LM, the vocabulary, the level, or
the place of the features.

Any number of processes fit one module: each takes its share of every batch, and gradients are added up, so that the batch, and
up to rounding the module, are those of a single process.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from latentknobs.config import TrainConfig
from latentknobs.data.examples import Batch, Example
from latentknobs.data.segment_batches import Features
from latentknobs.errors import ConfigError, NoExamplesError, RunError
from latentknobs.learners.base import Learner, Loss
from latentknobs.training.checkpoint import Checkpoint
from latentknobs.training.fitstate import FitState, device_of
from latentknobs.training.processes import Processes

CHECKS = 20  # validation points in a run
SEGMENTS = 4096  # whose features the learner's summary of a module reads


def fit(
    learner: Learner, module: nn.Module, features: Features, examples: Sequence[Example], held_out: Sequence[Example],
    config: TrainConfig, *, reference: nn.Module | None = None, log: Callable[[dict[str, Any]], None] = lambda row: None,
    checkpoint: Checkpoint | None = None, processes: Processes | None = None,
) -> nn.Module:  # fmt: skip
    """Trains `module` in place and returns it with the weights of its best validation step.

    Args:
        examples, held_out: of responses of the features; `held_out` only chooses the step.
        reference: the module whose policy sampled the rollouts; None before there was one.
        log: receives one row of metrics for each step, in every process; only then may the checkpoint hold that step.
        checkpoint: saved to every `checkpoint_every` steps; steps that it holds already are neither run nor logged again.

    Raises:
        ConfigError: settings that cannot work together, or a loss that is no longer finite.
        NoExamplesError: there is nothing to train on.
        RunError: processes do not see the same checkpoint.
    """
    processes = processes or Processes()
    check_fit(config, len(examples), len(held_out))
    state = FitState(module, config)
    resume(state, checkpoint, processes)
    every = max(1, config.steps // CHECKS)
    while state.step < config.steps and not _is_over(state, config):
        row = {"step": state.step + 1} | _step(learner, state, features, examples, config, reference, processes)
        state.step += 1
        if held_out and (state.step % every == 0 or state.step == config.steps):
            row |= {f"validation_{name}": value for name, value in
                    evaluate(learner, module, features, held_out, config, reference, processes).items()}  # fmt: skip
            row |= learner.summary(module, features.sample(SEGMENTS).to(device_of(module)))
            watched = -row["validation_loss"] if learner.watched is None else row[f"validation_{learner.watched}"]
            state.judge(row["validation_loss"], watched)
        if _is_over(state, config):
            row["stopped"] = (
                f"no better held-out {learner.watched or 'loss'} than {abs(state.best_watched):.3f} in {state.stale} checks"
            )
        log(row)
        if checkpoint and processes.is_main and state.step % config.checkpoint_every == 0:
            state.save(checkpoint)
    if held_out:
        module.load_state_dict(state.best)
    return module.eval()


def check_fit(config: TrainConfig, examples: int, held_out: int) -> None:
    """Refuses settings that contradict each other or the data. Errors: see `fit`."""
    if config.warmup >= config.steps:
        raise ConfigError(
            f"warmup={config.warmup} takes all of steps={config.steps}: the learning rate would never reach learning_rate. "
            "Lower warmup or raise steps."
        )
    if not examples:
        raise NoExamplesError("There is no example to train on. Lower validation, or collect more rollouts.")
    if config.patience is not None and not held_out:
        raise ConfigError(
            f"patience={config.patience} stops on held-out examples, and there are none. Raise validation (now "
            f"{config.validation:g}) or the number of prompts, or leave patience out."
        )


def _step(
    learner: Learner, state: FitState, features: Features, examples: Sequence[Example], config: TrainConfig,
    reference: nn.Module | None, processes: Processes,
) -> dict[str, Any]:  # fmt: skip
    """One step of the optimiser on the same batch in all processes, each taking its share; metrics of the whole batch."""
    picked = torch.randint(len(examples), (config.pairs_per_step,), generator=state.generator).tolist()
    mine = [examples[n] for n in picked[processes.rank :: processes.size]]
    return update(learner, state, features, mine, len(picked), config, reference, processes)


def update(
    learner: Learner, state: FitState, features: Features, mine: Sequence[Example], count: int, config: TrainConfig,
    reference: nn.Module | None, processes: Processes,
) -> dict[str, Any]:  # fmt: skip
    """Moves the module once along the gradient of the mean loss of `count` examples, shared out among the processes."""
    weights = list(state.module.parameters())
    gradients, total = _gradients(learner, state.module, features, mine, count, reference, processes)
    processes.sum_([*gradients, total])
    loss, norm = total.item() / count, get_total_norm(gradients)
    if not (math.isfinite(loss) and norm.isfinite()):
        raise ConfigError(
            f"In step {state.step + 1} the loss became {loss:g} and the norm of its gradient {norm:g}. Lower learning_rate "
            f"({config.learning_rate:g}), or set clip, e.g. 1, or floor, e.g. -20; or change the settings of the learner "
            f"{learner.name!r}: {learner.settings!r}."
        )
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    if config.clip is not None:
        clip_grads_with_norm_(weights, config.clip, norm)
    rate = state.schedule.get_last_lr()[0]
    state.optimiser.step()
    state.schedule.step()
    return {"loss": loss, "gradient_norm": norm.item(), "learning_rate": rate}


def _gradients(
    learner: Learner, module: nn.Module, features: Features, mine: Sequence[Example], total: int, reference: nn.Module | None,
    processes: Processes,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """This process's part of the gradient of the mean loss of `total` examples, and the sum of its losses."""
    weights = list(module.parameters())
    batch = Batch.read(features, mine, device_of(module)) if mine else None
    segments = weights[0].new_tensor(int(batch.times_M.sum()) if batch else 0)
    processes.sum_([segments])
    if batch is None:
        return [torch.zeros_like(weight) for weight in weights], weights[0].new_tensor(0.0)
    loss = learner.loss(module, batch, reference)
    mean = loss.each_B.sum() / total
    if loss.penalty_M is not None:
        mean = mean + (loss.penalty_M * batch.times_M).sum() / segments.clamp(min=1)
    return list(torch.autograd.grad(mean, weights)), loss.each_B.detach().sum()


@torch.no_grad()
def evaluate(
    learner: Learner, module: nn.Module, features: Features, examples: Sequence[Example], config: TrainConfig,
    reference: nn.Module | None = None, processes: Processes | None = None,
) -> dict[str, float]:  # fmt: skip
    """Means of the loss and of its metrics over some examples."""
    processes = processes or Processes()
    mine = examples[processes.rank :: processes.size]
    sums: dict[str, float] = {}
    for start in range(0, len(mine), config.pairs_per_step):
        batch = Batch.read(features, mine[start : start + config.pairs_per_step], device_of(module))
        loss: Loss = learner.loss(module, batch, reference)
        for name, value_B in {"loss": loss.each_B, **loss.metrics}.items():
            sums[name] = sums.get(name, 0.0) + value_B.sum().item()
    parts = processes.gather(sums)
    names = sorted({name for part in parts for name in part})
    return {name: sum(part.get(name, 0.0) for part in parts) / len(examples) for name in names}


def _is_over(state: FitState, config: TrainConfig) -> bool:
    return config.patience is not None and state.stale >= config.patience


def resume(state: FitState, checkpoint: Checkpoint | None, processes: Processes) -> None:
    """Goes on where the checkpoint is; RunError if processes do not see the same one."""
    steps = processes.gather(checkpoint.step() if checkpoint else 0)
    if len(set(steps)) > 1:
        raise RunError(
            f"The processes would go on after different steps ({', '.join(map(str, steps))}), so they do not see the same run "
            "directory. Put output_dir on a disk that all of them share."
        )
    saved = checkpoint.load() if checkpoint else None
    if saved:
        state.restore(saved)
