"""What is measured on rollouts: rewards, votes, and what a policy chose where.

Every measure is an array (samples, prompts), prompts in their order; samples is 1 where all samples of a prompt are measured
together.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from benchmarks.paper.arena import Arena, Player
from benchmarks.paper.statistics import vote_accuracy
from latentknobs.data.rollouts import Rollout
from latentknobs.heads.segmenters import parse_level
from latentknobs.rewards.answer import final_number

Floats = NDArray[np.float64]
Choices = Callable[[NDArray[np.float64], Rollout], float]
PLACES = {  # name: (delimiter, which tokens of the response)
    "first in sentence": (".!?", "starts"),
    "inside sentence": (".!?", "rest"),
    "thinking": ("\n", "before"),
    "answering": ("\n", "after"),
}


def measure(name: str, arena: Arena, player: Player, part: str, rollouts: Sequence[Rollout], copies: int) -> Floats:
    """(S, P) values; S is 1 for measures of all samples of a prompt together.

    Args:
        name: a reward (see `rewards.make_reward`); `vote:N`, the accuracy of N votes; `temperature` or `non_greedy`, alone or
            with one of the `PLACES` after a comma.
    """
    if name.startswith("vote:"):
        return votes(arena, part, rollouts, copies, int(name.partition(":")[2]))
    if name.split(",")[0] in ("temperature", "non_greedy"):
        return rearrange(np.array(choices(name, arena, player, part, rollouts)), "(p c) -> c p", c=copies)
    return arena.scores(arena.reward(name), part, list(rollouts), copies)


def votes(arena: Arena, part: str, rollouts: Sequence[Rollout], copies: int, count: int) -> Floats:
    """(1, P) exact probability that `count` votes of the samples of a prompt name the right answer."""
    prompts = arena.prompts(part, len(rollouts) // copies)
    answers = [final_number(rollout.text, "So") for rollout in rollouts]
    right = [final_number(str(prompt.columns["answer"]), None) for prompt in prompts]
    return np.array([[vote_accuracy(answers[p * copies : (p + 1) * copies], right[p], count) for p in range(len(prompts))]])


def choices(name: str, arena: Arena, player: Player, part: str, rollouts: Sequence[Rollout]) -> list[float]:
    """Mean temperature (or share of tokens above 0) that a policy chose in each response; NaN where it never stood there."""
    space = player.policy.space
    if "temperature" not in space.names:
        return [float("nan")] * len(rollouts)
    knob = space.names.index("temperature")
    kind, _, place = name.partition(",")
    prompts = arena.prompts(part)
    out = []
    for rollout in rollouts:
        chosen_T = np.array(rollout.values)[:, knob]
        if place:
            chosen_T = chosen_T[where(place.strip(), arena, [prompts[rollout.prompt].ids[-1], *rollout.ids[:-1]])]
        values_T = chosen_T > 0 if kind == "non_greedy" else chosen_T
        out.append(float(values_T.mean()) if len(values_T) else float("nan"))
    return out


def where(place: str, arena: Arena, previous: Sequence[int]) -> NDArray[np.bool_]:
    """(T,) which response tokens a place means, given the token before each."""
    characters, kind = PLACES[place]
    segmenter = parse_level(f"delimiter:{characters}", arena.world.tokenizer)
    position_T = torch.arange(1, len(previous) + 1)  # 0 would count as a beginning whatever came before
    begins_T = segmenter.begins(position_T, torch.tensor(list(previous))).numpy()
    if kind in ("starts", "rest"):
        return np.asarray(begins_T if kind == "starts" else ~begins_T)
    begins_T[0] = False  # the prompt's last token is no part of the response
    after_T = np.cumsum(begins_T) > 0
    return np.asarray(after_T if kind == "after" else ~after_T)
