"""Fitting a head to preference pairs on the cache: nothing here knows the LM, the vocabulary or the level."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from latentknobs.config import TrainConfig
from latentknobs.data.features import FeatureCache
from latentknobs.data.pairs import Pair
from latentknobs.errors import ConfigError
from latentknobs.heads import OptionHead
from latentknobs.objectives import lpo_loss
from latentknobs.objectives.lpo import SCORES, tokens_separate_score, uniform_like

CHECKS = 20  # validation points in a run


def fit_head(
    head: OptionHead,
    cache: FeatureCache,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    config: TrainConfig,
    *,
    reference: OptionHead | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
) -> OptionHead:
    """Trains `head` in place and returns it with the weights of its best validation step.

    Args:
        pairs, held_out: `chosen` and `rejected` index responses of the cache; `held_out` only chooses the step.
        reference: the head that made the rollouts; None is the uniform distribution.
        log: receives one row of metrics for each step and each check.
    """
    ref_NK = _reference(cache, head, reference)
    generator = torch.Generator().manual_seed(config.seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, config.steps)
    best, best_loss = copy.deepcopy(head.state_dict()), float("inf")
    every = max(1, config.steps // CHECKS)
    for step in range(config.steps):
        picked = torch.randint(len(pairs), (config.pairs_per_step,), generator=generator).tolist()
        loss_B, _ = pair_losses(head, cache, [pairs[i] for i in picked], ref_NK, config)
        if not loss_B.isfinite().all():
            raise ConfigError(
                f"The loss became {loss_B.mean().item()} in step {step + 1}. Lower learning_rate ({config.learning_rate:g}) or "
                f"beta ({config.beta:g}); with objective 'tokens', set floor, e.g. -20."
            )
        optimiser.zero_grad()
        loss_B.mean().backward()
        optimiser.step()
        schedule.step()
        row: dict[str, Any] = {"step": step + 1, "loss": loss_B.mean().item()}
        if held_out and ((step + 1) % every == 0 or step + 1 == config.steps):
            row |= validate(head, cache, held_out, ref_NK, config)
            if row["validation_loss"] < best_loss:
                best, best_loss = copy.deepcopy(head.state_dict()), row["validation_loss"]
        log(row)
    if held_out:
        head.load_state_dict(best)
    return head.eval()


def pair_losses(
    head: OptionHead, cache: FeatureCache, pairs: Sequence[Pair], ref_NK: Tensor, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """(B,) losses of some pairs, and (B,) score of chosen minus score of rejected, before beta."""
    sides = []
    for side in ([p.chosen for p in pairs], [p.rejected for p in pairs]):
        response_B = torch.tensor(side, device=cache.start_R1.device)
        row_BS, mask_BS = cache.gather(response_B)
        sides.append((cache.responses(row_BS, mask_BS), head(cache.feature_NF[row_BS]), ref_NK[row_BS]))
    (chosen, pi_c, ref_c), (rejected, pi_r, ref_r) = sides
    loss_B = lpo_loss(
        config.objective, chosen, rejected, pi_c, pi_r, ref_c, ref_r, beta=config.beta, length_norm=config.length_norm
    )
    score = SCORES.get(config.objective, tokens_separate_score)
    with torch.no_grad():
        margin_B = score(pi_c, ref_c, chosen) - score(pi_r, ref_r, rejected)
    return loss_B, margin_B


@torch.no_grad()
def validate(
    head: OptionHead, cache: FeatureCache, pairs: Sequence[Pair], ref_NK: Tensor, config: TrainConfig
) -> dict[str, float]:
    """Mean loss and preference accuracy on some pairs, and how decided the head is (mean entropy, nats)."""
    losses, margins = [], []
    for start in range(0, len(pairs), 256):
        loss_B, margin_B = pair_losses(head, cache, pairs[start : start + 256], ref_NK, config)
        losses.append(loss_B)
        margins.append(margin_B)
    log_pi_NK = head(cache.feature_NF[:: max(1, len(cache.feature_NF) // 4096)])
    return {
        "validation_loss": torch.cat(losses).mean().item(),
        "validation_accuracy": (torch.cat(margins) > 0).double().mean().item(),
        "head_entropy": -(log_pi_NK.exp() * log_pi_NK).sum(-1).mean().item(),
    }


@torch.no_grad()
def _reference(cache: FeatureCache, head: OptionHead, reference: OptionHead | None) -> Tensor:
    if reference is None:
        return uniform_like(head(cache.feature_NF[:1])).expand(len(cache.feature_NF), -1)
    log_pi_NK: Tensor = reference(cache.feature_NF)
    return log_pi_NK
