"""Fitting a head to preference pairs: nothing here knows the LM, the vocabulary, the level, or where features are kept.

Any number of processes fit one head: each takes its share of every batch, and gradients are added up, so that the batch, and
up to rounding the head, are those of a single process.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from latentknobs.config import TrainConfig
from latentknobs.data.segment_batches import Features
from latentknobs.errors import ConfigError, NoPairsError, RunError
from latentknobs.heads.option_head import OptionHead
from latentknobs.learners.lpo import entropy
from latentknobs.learners.lpo.pairs import Pair
from latentknobs.training.checkpoint import Checkpoint
from latentknobs.training.fitstate import FitState
from latentknobs.training.pairbatch import PairBatch
from latentknobs.training.processes import Processes

CHECKS = 20  # validation points in a run
SEGMENTS = 4096  # of which the mean entropy of a head is taken


def fit_head(
    head: OptionHead,
    features: Features,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    config: TrainConfig,
    *,
    reference: OptionHead | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    checkpoint: Checkpoint | None = None,
    processes: Processes | None = None,
) -> OptionHead:
    """Trains `head` in place and returns it with the weights of its best validation step.

    Args:
        pairs, held_out: `chosen` and `rejected` index responses of the features; `held_out` only chooses the step.
        reference: the head that made the rollouts; None is the uniform distribution.
        log: receives one row of metrics for each step, in every process; only then may the checkpoint hold that step.
        checkpoint: saved to every `checkpoint_every` steps; steps that it holds already are neither run nor logged again.

    Raises:
        ConfigError: settings that cannot work together, or a loss that is no longer finite.
        NoPairsError: there is nothing to train on.
        RunError: processes do not see the same checkpoint.
    """
    processes = processes or Processes()
    check_fit(config, len(pairs), len(held_out))
    state = FitState(head, config)
    _resume(state, checkpoint, processes)
    every = max(1, config.steps // CHECKS)
    while state.step < config.steps and not _is_over(state, config):
        row = {"step": state.step + 1} | _step(state, features, pairs, config, reference, processes)
        state.step += 1
        if held_out and (state.step % every == 0 or state.step == config.steps):
            row |= validate(head, features, held_out, config, reference, processes)
            state.judge(row["validation_loss"], row["validation_accuracy"])
        if _is_over(state, config):
            row["stopped"] = f"no better held-out accuracy than {state.best_accuracy:.3f} in {state.stale} checks"
        log(row)
        if checkpoint and processes.is_main and state.step % config.checkpoint_every == 0:
            state.save(checkpoint)
    if held_out:
        head.load_state_dict(state.best)
    return head.eval()


def check_fit(config: TrainConfig, pairs: int, held_out: int) -> None:
    """Refuses what no fit can honour.

    Raises:
        ConfigError, NoPairsError: see `fit_head`.
    """
    if config.warmup >= config.steps:
        raise ConfigError(
            f"warmup={config.warmup} takes all of steps={config.steps}: the learning rate would never reach learning_rate. "
            "Lower warmup or raise steps."
        )
    if not pairs:
        raise NoPairsError("There is no pair to train on. Lower validation, or collect more pairs.")
    if config.patience is not None and not held_out:
        raise ConfigError(
            f"patience={config.patience} stops on held-out pairs, and there are none. Raise validation (now "
            f"{config.validation:g}) or the number of prompts, or leave patience out."
        )


def _step(
    state: FitState, features: Features, pairs: Sequence[Pair], config: TrainConfig, reference: OptionHead | None,
    processes: Processes,
) -> dict[str, Any]:  # fmt: skip
    """One step of the optimiser on the same batch in all processes, each taking its share; metrics of the whole batch."""
    head, weights = state.head, list(state.head.parameters())
    picked = torch.randint(len(pairs), (config.pairs_per_step,), generator=state.generator).tolist()
    mine = [pairs[n] for n in picked[processes.rank :: processes.size]]
    batch = PairBatch.read(head, features, mine, reference) if mine else None
    segments = head.shift_F.new_tensor(batch.count if batch else 0)
    processes.sum_([segments])
    if batch:
        loss_B = batch.losses(config)
        mean = loss_B.sum() / len(picked) + batch.penalty(config) / segments.clamp(min=1)
        gradients, total = list(torch.autograd.grad(mean, weights)), loss_B.detach().sum()
    else:
        gradients, total = [torch.zeros_like(weight) for weight in weights], head.shift_F.new_tensor(0.0)
    processes.sum_([*gradients, total])
    loss, norm = total.item() / len(picked), get_total_norm(gradients)
    if not (math.isfinite(loss) and norm.isfinite()):
        raise ConfigError(
            f"In step {state.step + 1} the loss became {loss:g} and the norm of its gradient {norm:g}. Lower learning_rate "
            f"({config.learning_rate:g}) or beta ({config.beta:g}), or set clip, e.g. 1; with objective 'tokens', set floor, "
            "e.g. -20."
        )
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    if config.clip is not None:
        clip_grads_with_norm_(weights, config.clip, norm)
    rate = state.schedule.get_last_lr()[0]
    state.optimiser.step()
    state.schedule.step()
    return {"loss": loss, "gradient_norm": norm.item(), "learning_rate": rate}


@torch.no_grad()
def validate(
    head: OptionHead,
    features: Features,
    pairs: Sequence[Pair],
    config: TrainConfig,
    reference: OptionHead | None = None,
    processes: Processes | None = None,
) -> dict[str, float]:
    """Mean loss and preference accuracy on some pairs, and how decided the head is (mean entropy, nats)."""
    processes = processes or Processes()
    mine = pairs[processes.rank :: processes.size]
    loss, right = 0.0, 0.0
    for start in range(0, len(mine), config.pairs_per_step):
        batch = PairBatch.read(head, features, mine[start : start + config.pairs_per_step], reference)
        loss += batch.losses(config).sum().item()
        right += (batch.margins(config) > 0).sum().item()
    loss, right = processes.totals([loss, right])
    log_pi_NK = head(features.sample(SEGMENTS).to(head.shift_F.device), fold=True)
    return {
        "validation_loss": loss / len(pairs),
        "validation_accuracy": right / len(pairs),
        "head_entropy": entropy(log_pi_NK).mean().item(),
    }


def _is_over(state: FitState, config: TrainConfig) -> bool:
    return config.patience is not None and state.stale >= config.patience


def _resume(state: FitState, checkpoint: Checkpoint | None, processes: Processes) -> None:
    steps = processes.gather(checkpoint.step() if checkpoint else 0)
    if len(set(steps)) > 1:
        raise RunError(
            f"The processes would go on after different steps ({', '.join(map(str, steps))}), so they do not see the same run "
            "directory. Put output_dir on a disk that all of them share."
        )
    saved = checkpoint.load() if checkpoint else None
    if saved:
        state.restore(saved)
