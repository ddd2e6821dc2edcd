"""A column that keeps what soft likelihoods need of a token's logits: the best ones, groups of the rest, and the target.

The most probable `most` tokens are kept one by one. Those behind them, in descending order, are put into groups of growing size,
and each group is kept as one number: the logit that all of its tokens would need for the group to have its mass at temperature 1.
A vocabulary of V tokens takes about `most` + 10 log10(V / most) numbers, whatever the text.

What this costs in accuracy, with b = 1/T and w the spread of a group's logits (largest minus smallest): log of a group's mass at
temperature T is wrong by at most |b (1 - b)| w^2 / 8 (the second derivative of the cumulant of a variable of spread w is at most
w^2 / 4; the error is 0 at b = 0 and b = 1), and so is log P of every token. A cut that falls into a group acts on all of it as on
its middle: its `excess` is wrong by at most half the group's mass (top-p), or by w / T (min-p). Top-n-sigma also measures a
deviation, which moves by no more than the values it is of: its excess is wrong by at most n w / T for a token kept by itself, and
(n + 1) w / T for one of a group. Where `most` is at least V everything is exact.
"""

from functools import partial
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from latentknobs.data.columns import Column, Reading
from latentknobs.knobs.columns import Columns
from latentknobs.likelihood.soft import Target, check_reachable
from latentknobs.tensors import pick

GROWTH = 1.25  # of a group's last rank over its first
HEADER = 4  # numbers before the logits: the target's logit, its column, V, and `most`


def top_logits(most: int) -> Column:
    """The column: (T, 4 + C) float32, read by `unpack`."""
    return Column(partial(_read, most=most), "token")


def _read(reading: Reading, most: int) -> Tensor:
    logits_TV = reading.logits_TV if reading.logits_TV.dtype == torch.float64 else reading.logits_TV.float()
    ids_T = torch.tensor(reading.rollout.ids, device=logits_TV.device)
    columns, target = compress(logits_TV, ids_T, most)
    check_reachable(columns.logit_NC[:, 0], target.logit_N)
    sizes = (torch.full_like(target.logit_N, size) for size in (logits_TV.shape[1], most))
    header_T4 = rearrange([target.logit_N, target.column_N.to(logits_TV), *sizes], "h t -> t h")
    return torch.cat([header_T4, columns.logit_NC], -1)


def unpack(row_MX: Tensor) -> tuple[Columns, Target]:
    """What the column holds of M tokens, all of one model."""
    logit_MC = row_MX[:, HEADER:]
    V, most = int(row_MX[0, 2]), int(row_MX[0, 3])
    count_C = row_MX.new_tensor(group_sizes(V, most)) if most < V else None
    return Columns(logit_MC, count_C), Target(row_MX[:, 0], row_MX[:, 1].long())


def compress(logits_NV: Tensor, target_N: Tensor, most: int) -> tuple[Columns, Target]:
    """Columns of rows of logits, normalised at temperature 1, and the tokens `target_N` in them."""
    V = logits_NV.shape[1]
    logp_NV = logits_NV.log_softmax(-1)
    row = Columns.of(logp_NV)
    logit_N = pick(logp_NV, target_N).maximum(row.logit_NC[:, -1])
    rank_N = (row.logit_NC > logit_N.unsqueeze(-1)).sum(-1)
    if most >= V:
        return row, Target(logit_N, rank_N)
    edges, count_C = group_edges(V, most), logp_NV.new_tensor(group_sizes(V, most))
    mass_NG = [row.logit_NC[:, start:end].logsumexp(-1) for start, end in pairwise(edges)]
    mean_NG = rearrange(mass_NG, "g n -> n g") - count_C[most:].log()
    group_N = torch.searchsorted(torch.tensor(edges, device=rank_N.device), rank_N, right=True)
    column_N = torch.where(rank_N < most, rank_N, most - 1 + group_N)
    return Columns(torch.cat([row.logit_NC[:, :most], mean_NG], -1), count_C), Target(logit_N, column_N)


def group_edges(V: int, most: int) -> list[int]:
    """The ranks at which groups begin, and V.

    >>> group_edges(20, 8)
    [8, 10, 12, 15, 18, 20]
    """
    edges = [min(most, V)]
    while edges[-1] < V:
        edges.append(min(V, max(edges[-1] + 1, int(edges[-1] * GROWTH))))
    return edges


def group_sizes(V: int, most: int) -> list[int]:
    """How many tokens each column stands for."""
    edges = group_edges(V, most)
    return [1] * edges[0] + [end - start for start, end in pairwise(edges)]
