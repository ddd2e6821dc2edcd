"""`discriminator()`: from the scored rollouts of a run to a discriminator for classifier guidance (`heads.discriminator`).

The property is that a response earns more than a threshold. Every token of a response is an example, with its response's label.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from latentknobs.data.disk import save_tensors
from latentknobs.data.prompts import Prompt, is_held_out
from latentknobs.data.rollouts import Rollout
from latentknobs.engines.base import Engine
from latentknobs.errors import ConfigError, NoExamplesError, RunError
from latentknobs.files import path_of
from latentknobs.heads.discriminator import FORMAT, Discriminator
from latentknobs.models.world import left_as_it_was
from latentknobs.progress import progress, say
from latentknobs.training.accounts import reopened
from latentknobs.training.sampling import read_scored

MOST = 4096  # responses
SALT = "discriminator "  # a split of its own: all training prompts may be on one side of the other


class Quality(NamedTuple):
    """How well it knows the label of held-out responses, token by token."""

    loss: float  # nats; `base` is that of a constant probability
    base: float
    auc: float  # probability that it puts a response with the property above one without (1/2: it knows nothing)
    share: float  # of responses that have the property

    def __str__(self) -> str:
        verdict = "" if self.loss < self.base else " It is not better than a constant: do not guide with it."
        return f"held-out loss {self.loss:.3f} (constant: {self.base:.3f} nats), AUC {self.auc:.3f}.{verdict}"


def discriminator(
    run: str | Path, out: str | Path, *, threshold: float | None = None, rank: int = 16, steps: int = 300, seed: int = 0,
    **settings: Any,
) -> Quality:  # fmt: skip
    """Trains a discriminator on the first round of a run, and writes it to the file `out`.

    Args:
        threshold: a response has the property if its reward is above it; None: above the median.
        rank: width of its vectors of tokens.
        settings: as in `account`.

    Raises:
        RunError: the run has no scored rollouts.
        NoExamplesError: all responses have the property, or none has.
        ConfigError: an engine without hidden states; or as in `account`.
    """
    run = path_of(run)
    rollouts, reward_N = _scored(run)
    limit = float(np.median(reward_N)) if threshold is None else threshold
    label_N = [reward > limit for reward in reward_N]
    if len(set(label_N)) < 2:
        raise NoExamplesError(
            f"Of {len(label_N)} responses in {str(run)!r} {'all' if label_N[0] else 'none'} earn more than {limit:g}, so there "
            f"is nothing to tell apart. Choose a threshold between {min(reward_N):g} and {max(reward_N):g}."
        )
    with left_as_it_was(settings.get("model")):
        config, sources = reopened(run, settings)
        if not sources.engine.reads_hidden:
            raise ConfigError(f"The engine {sources.engine.name!r} gives no hidden states. Use engine='transformers'.")
        torch.manual_seed(seed)
        say(f"Reads {len(rollouts)} responses again, {sum(len(one.ids) for one in rollouts)} tokens: one forward pass for each.")
        examples = _examples(sources.engine, sources.train, rollouts, label_N, config.batch_size)
        vocabulary = sources.model.get_input_embeddings().weight.shape[0]
        found, quality = fit_discriminator(examples, vocabulary, rank, steps)
    save_tensors(found.state_dict(), path_of(out), {"format": FORMAT, "model": str(config.model)})
    return quality


class Examples(NamedTuple):
    """M tokens: hidden states before them, their labels, weights that sum to one for each response, and the split."""

    hidden_MD: Tensor
    token_M: Tensor
    label_M: Tensor
    weight_M: Tensor
    is_held_out_M: Tensor


def fit_discriminator(examples: Examples, vocabulary: int, rank: int, steps: int) -> tuple[Discriminator, Quality]:
    """AdamW on the weighted cross-entropy of the training tokens; the step with the best held-out loss is kept."""
    train_M, held_M = ~examples.is_held_out_M, examples.is_held_out_M
    if not train_M.any() or not held_M.any():
        raise NoExamplesError("The prompts of the run are too few to keep a fifth of them out. Train it on more prompts.")
    found = Discriminator(examples.hidden_MD.shape[1], vocabulary, rank)
    found.mean_D.copy_(examples.hidden_MD[train_M].mean(0))
    found.std_D.copy_(examples.hidden_MD[train_M].std(0).clamp(min=1e-6))
    optimizer = torch.optim.AdamW(found.parameters(), lr=1e-2, weight_decay=0.1)
    best, kept, place_T = float("inf"), found.state_dict(), train_M.nonzero().squeeze(-1)
    for step in range(steps):
        some_B = place_T[torch.randint(len(place_T), (4096,))]
        optimizer.zero_grad()
        _loss(found, examples, some_B).backward()
        optimizer.step()
        if (step + 1) % 20 == 0 or step + 1 == steps:
            loss = float(_loss(found, examples, held_M.nonzero().squeeze(-1)).detach())
            if loss < best:
                best, kept = loss, {name: value.clone() for name, value in found.state_dict().items()}
    found.load_state_dict(kept)
    return found.eval().requires_grad_(False), _quality(found, examples, best)


def _loss(found: Discriminator, examples: Examples, some_B: Tensor) -> Tensor:
    logit_B, weight_B = found(examples.hidden_MD[some_B], examples.token_M[some_B]), examples.weight_M[some_B]
    loss_B = torch.nn.functional.binary_cross_entropy_with_logits(logit_B, examples.label_M[some_B], reduction="none")
    return (loss_B * weight_B).sum() / weight_B.sum()


def _quality(found: Discriminator, examples: Examples, loss: float) -> Quality:
    held_M = examples.is_held_out_M
    with torch.no_grad():
        logit_H = found(examples.hidden_MD[held_M], examples.token_M[held_M])
    label_H, weight_H = examples.label_M[held_M], examples.weight_M[held_M]
    share = float((label_H * weight_H).sum() / weight_H.sum())
    base = float(torch.special.entr(torch.tensor([share, 1 - share])).sum())
    above, below = logit_H[label_H > 0].numpy(), logit_H[label_H == 0].numpy()
    auc = mannwhitneyu(above, below).statistic / (len(above) * len(below)) if len(above) and len(below) else 0.0
    return Quality(loss, base, float(auc), share)


def _examples(engine: Engine, prompts: list[Prompt], rollouts: list[Rollout], label_N: list[bool], batch_size: int) -> Examples:
    columns: list[list[Tensor]] = [[] for _ in Examples._fields]
    with progress("discriminator", len(rollouts)) as advance:
        for start in range(0, len(rollouts), batch_size):
            some = rollouts[start : start + batch_size]
            read = engine.read([prompts[one.prompt].ids for one in some], [one.ids for one in some])
            for one, label, (hidden_TD, _) in zip(some, label_N[start:], read, strict=False):
                T, held_out = len(one.ids), is_held_out(SALT + prompts[one.prompt].text)
                rest = (torch.full((T,), float(label)), torch.full((T,), 1 / T), torch.full((T,), held_out))
                for column, part in zip(columns, (hidden_TD.float().cpu(), torch.tensor(one.ids), *rest), strict=True):
                    column.append(part)
            advance(len(some))
    return Examples(*map(torch.cat, columns))


def _scored(run: Path) -> tuple[list[Rollout], list[float]]:
    """The rollouts of the first round that have a score, at most 4096 of them, and their scores."""
    paths = sorted((run / "round-1" / "rollouts").glob("*.jsonl"))
    scores = [run / "round-1" / "scores" / path.name for path in paths]
    if not paths or not all(path.exists() for path in scores):
        raise RunError(f"There are no scored rollouts in {str(run)!r}. Give the directory of a run of `latentknobs train`.")
    kept = [(rollout, score) for rollout, score in read_scored(paths, scores) if score is not None][:MOST]
    return [rollout for rollout, _ in kept], [score for _, score in kept]
