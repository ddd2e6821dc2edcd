"""A few strategies out of many options: greedy coverage by rewards (arXiv 2603.09065, section 3).

The coverage of a set S of options is F(S) = mean over prompts of the best reward that an option of S earns. It grows with
S, each addition by less, so taking the best addition k times reaches at least 1 - 1/e of the best k options' gain over
the worst rewards (Nemhauser, Wolsey and Fisher 1978).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from pydantic import BaseModel
from torch import Tensor

from latentknobs.errors import DataError, SpaceError
from latentknobs.files import read_json
from latentknobs.knobs.space import KnobSpace
from latentknobs.tensors import segment_sum


class Saved(BaseModel):
    """The file of `latentknobs strategies`: the pool's knobs and their order as in a config, and the chosen options."""

    knobs: list[Any]
    order: str | list[str] = "transformers"
    strategies: list[dict[str, float]]


def read_strategies(path: str | Path) -> Saved:
    """A file of strategies; SpaceError if there is none, or it is damaged."""
    path = Path(path)
    cure = "Give the strategies.json of `latentknobs strategies`."
    if not path.is_file():
        raise SpaceError(f"There is no file of strategies {str(path)!r}. {cure}")
    saved: Saved = read_json(path, Saved, SpaceError, cure)
    return saved


def only(space: KnobSpace, strategies: Sequence[Mapping[str, float]]) -> KnobSpace:
    """The space with these options alone, knobs that one leaves out neutral; SpaceError if one is not in the space, or twice."""
    neutral = {knob.name: knob.neutral for knob in space.knobs}
    return space.select([neutral | dict(strategy) for strategy in strategies])


def coverage(reward_PK: Tensor, chosen: Sequence[int]) -> float:
    """F(chosen): mean over prompts of the best chosen option's reward."""
    return float(reward_PK[:, list(chosen)].amax(-1).mean())


def greedy_cover(reward_PK: Tensor, count: int) -> list[int]:
    """Options in the order in which they are added; the first is the best constant option.

    Args:
        reward_PK: (P, K) expected reward of each option on each prompt (see `reward_table`).
        count: how many to choose, 1..K. Where nothing more is to be gained, the best constants follow.

    Raises:
        SpaceError: `count` is not within 1..K.
        DataError: a reward is missing or not finite.
    """
    prompts, options = reward_PK.shape
    if not 1 <= count <= options:
        raise SpaceError(f"{count} strategies cannot be chosen from {options} options. Choose 1 to {options}.")
    if missing := int((~reward_PK.isfinite()).sum()):
        raise DataError(
            f"{missing} of {prompts * options} rewards are missing or not finite. Sample every option at least once on every "
            "prompt, or leave out the prompts and options where that was not done."
        )
    reward_PK = reward_PK.double()
    mean_K = reward_PK.mean(0)
    best_P1 = reward_PK.amin(-1, keepdim=True)  # before any choice: the worst option
    chosen: list[int] = []
    for _ in range(count):
        gain_K = (reward_PK - best_P1).clamp(min=0).mean(0)
        gain_K[chosen] = -torch.inf
        is_best_K = gain_K >= gain_K.max() - 1e-12  # ties: the best constant, then the lowest index
        chosen.append(int(mean_K.masked_fill(~is_best_K, -torch.inf).argmax()))
        best_P1 = torch.maximum(best_P1, reward_PK[:, chosen[-1:]])
    return chosen


def reward_table(prompt_R: Tensor, option_R: Tensor, reward_R: Tensor, prompts: int, options: int) -> Tensor:
    """(P, K) mean reward of R rollouts by prompt and option; NaN where a pair was never tried."""
    cell_R = prompt_R.long() * options + option_R.long()
    reward_R, cells = reward_R.double(), prompts * options
    total_C, count_C = segment_sum(reward_R, cell_R, cells), segment_sum(torch.ones_like(reward_R), cell_R, cells)
    return rearrange(total_C / count_C, "(p k) -> p k", p=prompts)
