"""A contextual bandit whose best option is known: in context c, option BEST[c] makes good tokens most often."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentknobs import KnobSpace
from latentknobs.config import TrainConfig
from latentknobs.data.columns import ALL
from latentknobs.data.examples import Pair
from latentknobs.data.segment_batches import FeatureCache, Features
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every, Segmenter
from latentknobs.learners.base import Inputs
from latentknobs.learners.lpo.learner import LPO
from latentknobs.training.fit import fit

SPACE = KnobSpace.of("temperature:0.2,0.6,1")
BEST = (2, 0, 1)
BAD, GOOD, STOP = range(3)  # STOP is the delimiter, as likely under every option
T = 12


def play(segmenter: Segmenter, pairs: int, seed: int = 0, policy: OptionHead | None = None) -> tuple[FeatureCache, list[Pair]]:
    """Responses of random length, cut by a real segmenter, and pairs of them by how many good tokens they hold.

    Every segment has a context of its own, which the features tell; the option is drawn from the policy, or evenly.
    """
    rng = torch.Generator().manual_seed(seed)
    chance_CKV = torch.tensor([[[0.6, 0.2, 0.2]] * 3] * 3)
    for c, k in enumerate(BEST):
        chance_CKV[c, k] = torch.tensor([0.1, 0.7, 0.2])
    rows: list[list[Tensor]] = []
    good, lengths = [], []
    for _ in range(2 * pairs):
        ids = [BAD]
        length = int(torch.randint(3, T + 1, (1,), generator=rng))
        first = len(rows)
        for t in range(length):
            if segmenter.begins(torch.tensor([[t]]), torch.tensor([[ids[-1]]])):
                c = int(torch.randint(3, (1,), generator=rng))
                feature_F = torch.eye(3)[c] + 0.1 * torch.randn(3, generator=rng)
                pi_K = torch.ones(3) / 3 if policy is None else policy(feature_F).detach().exp()
                k = int(pi_K.multinomial(1, generator=rng))
                rows.append([feature_F, torch.zeros(3), torch.tensor(k), torch.tensor(0.0)])
            ids.append(int(chance_CKV[c, k].multinomial(1, generator=rng)))
            rows[-1][1] = rows[-1][1] + chance_CKV[c, :, ids[-1]].log()
            rows[-1][3] = rows[-1][3] + chance_CKV[c, :, ids[-1]].mean().log()
        good.append(ids.count(GOOD) / length)
        lengths.append(len(rows) - first)
    start_R1 = torch.tensor([0, *lengths]).cumsum(0)
    feature_NF, *columns = (torch.stack(column) for column in zip(*rows, strict=True))
    cache = FeatureCache(feature_NF, dict(zip(ALL, columns, strict=True)), start_R1)
    made = [Pair(i, *sorted((2 * i, 2 * i + 1), key=lambda r: -good[r])) for i in range(pairs)]
    return cache, [pair for pair in made if good[pair.chosen] > good[pair.rejected]]


def new_head(cache: FeatureCache, hidden: int = 16, seed: int = 0) -> OptionHead:
    """A head for the bandit, its weights fixed by the seed."""
    torch.manual_seed(seed)
    head = OptionHead(SPACE, cache.feature_NF.shape[1], hidden)
    head.fit_scaler(*cache.moments())
    return head


def choices(head: OptionHead) -> tuple[int, ...]:
    """The most likely option in each context."""
    return tuple(head(torch.eye(3, dtype=head.shift_F.dtype)).argmax(-1).tolist())


def lpo(config: TrainConfig) -> LPO:
    """The learner with the settings of a config."""
    return LPO(config["learner"], Inputs(SPACE, Every(1), ("hidden",)))


def fit_pairs(
    head: OptionHead, features: Features, pairs: Sequence[Pair], held_out: Sequence[Pair], config: TrainConfig, **more: Any
) -> OptionHead:
    """`fit` on pairs."""
    train, others = ([pair.example for pair in side] for side in (pairs, held_out))
    fitted = fit(lpo(config), head, features, train, others, config, **more)
    assert fitted is head
    return head
