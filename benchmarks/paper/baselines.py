"""What the reviewers asked to compare with: families of policies, each tuned on dev prompts over the small grid written here."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.paper.arena import Arena, Player
from benchmarks.paper.hand import RULES
from benchmarks.paper.measures import measure
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import ConstantPolicy, GreedyPolicy, Policy, UniformPolicy
from latentknobs.policies.rules import EDT, Dynatemp, Mirostat

TURN = tuple(round(0.1 * i, 1) for i in range(1, 16))
JOINT = {"temperature": [0.4, 0.8, 1.0, 1.4], "top_p": [0.8, 0.9, 0.95, 1.0], "min_p": [0.0, 0.05, 0.15]}
WARM = [0.8, 1.0, 1.2, 1.5]
FEWEST = 32  # prompts in the first heat of a race
ALL = 40  # members of a family that are all asked all dev prompts; only larger families race

SOURCES = {
    "edt": "EDT: T = T0 N^(θ/H), N = 0.8 (arXiv 2403.14541); T0 in 0.6, 1, 1.4, 1.8, θ in 0.3, 1, 3",
    "dynatemp": "llama.cpp's dynamic temperature: T = a + (b - a)(H / ln V)^e; (a, b) of four ranges, e in 0.3, 0.6, 1",
    "min_p": "min-p after temperature (arXiv 2407.01082); T in 0.8, 1, 1.2, 1.5, p in 0.02, 0.05, 0.1, 0.2",
    "top_n_sigma": "top-n-sigma after temperature (arXiv 2411.07641); T in 0.8, 1, 1.2, 1.5, n in 0.5, 0.7, 1, 1.5",
    "mirostat": "Mirostat 2 (arXiv 2007.14966); τ in 0.5, 1, 2, 3, 5 bits, η in 0.1, 0.3",
    "turn": "TURN: the entropy turning point over T = 0.1 to 1.5 (arXiv 2502.05234), without labels",
    "joint": "the best constant of temperature x top-p x min-p, 48 settings",
    "hand": "a hand rule of the recipe, cold in 0, 0.2, 0.4, hot in 0.8, 1, 1.2, 1.4",
    "hand_min_p": "the same with min-p after it: cold in 0, 0.2, 0.4, hot in 1, 1.2, 1.4, 1.6, p in 0.05, 0.1, 0.15",
}


def constants(space: KnobSpace) -> list[Player]:
    """Every option of a space as a player."""
    return [Player(space.label(k), ConstantPolicy(space, k), f"constant {space.label(k)}") for k in range(space.K)]


def standard(space: KnobSpace, level: str, tokenizer: Any) -> list[Player]:
    """Greedy decoding and the uniform mixture."""
    mixture = UniformPolicy(space, parse_level(level, tokenizer))
    return [
        Player("greedy decoding", GreedyPolicy(), "greedy"),
        Player("uniform mixture", mixture, f"uniform {level} {space!r}"),
    ]


def family(name: str, arena: Arena, hand: str | None = None) -> list[Player]:
    """The members of a family that has to be tuned."""

    def members(make: Callable[..., Policy], *grids: Sequence[Any]) -> list[Player]:
        return [Player(f"{name}{args}", make(*args), f"{name} {args}") for args in itertools.product(*grids)]

    if name == "edt":
        return members(EDT, [0.6, 1.0, 1.4, 1.8], [0.3, 1.0, 3.0])
    if name == "dynatemp":
        ranges = [(0.0, 1.5), (0.0, 2.0), (0.4, 1.2), (0.4, 2.0)]
        return members(lambda pair, exponent: Dynatemp(pair[0], pair[1], exponent), ranges, [0.3, 0.6, 1.0])
    if name == "mirostat":
        return members(Mirostat, [0.5, 1.0, 2.0, 3.0, 5.0], [0.1, 0.3])
    if name in ("hand", "hand_min_p"):
        rule = RULES[str(hand)]
        make = lambda *settings: rule(arena.world.tokenizer, *settings)  # noqa: E731
        grids = [[0.8, 1.0, 1.2, 1.4]] if name == "hand" else [[1.0, 1.2, 1.4, 1.6], [0.05, 0.1, 0.15]]
        players = members(make, [0.0, 0.2, 0.4], *grids)
        return [Player(p.name, p.policy, f"{p.key} {hand}") for p in players]
    spaces = {
        "min_p": {"temperature": WARM, "min_p": [0.02, 0.05, 0.1, 0.2]},
        "top_n_sigma": {"temperature": WARM, "top_n_sigma": [0.5, 0.7, 1.0, 1.5]},
        "joint": JOINT,
    }
    return constants(KnobSpace.of(spaces[name]))


def tuned(name: str, arena: Arena, target: str, copies: int, hand: str | None = None) -> Player:
    """The member of a family that is best on dev prompts, renamed after its family."""

    def value(player: Player, limit: int) -> float:
        return dev_mean(player, arena, target, copies, limit)

    best = turn(arena) if name == "turn" else race(family(name, arena, hand), len(arena.prompts("dev")), value)
    label = {"hand": "hand rule", "hand_min_p": "hand rule with min-p", "joint": "best joint constant"}.get(name, name)
    return Player(f"{label}: {best.name.removeprefix(name)}", best.policy, best.key)


def race(players: list[Player], size: int, value: Callable[[Player, int], float]) -> Player:
    """The best player; of many by heats: the better half goes on to twice the prompts, the last four to all (successive halving).

    Args:
        size: how many prompts there are.
        value: what a player earns on the first so many prompts.
    """
    limit = size if len(players) <= ALL else min(size, max(FEWEST, size // 8))
    while len(players) > 1:
        limit = size if len(players) <= 4 else limit
        earned = [value(player, limit) for player in players]
        ranked = [players[i] for i in np.argsort(earned)[::-1]]
        players = ranked[: 1 if limit == size else (len(ranked) + 1) // 2]
        limit = min(size, 2 * limit)
    return players[0]


def dev_mean(player: Player, arena: Arena, target: str, copies: int, limit: int | None = None) -> float:
    """Mean of a measure over the first dev prompts."""
    rollouts = arena.play(player, "dev", copies, limit)
    return float(measure(target, arena, player, "dev", rollouts, copies).mean())


def turn(arena: Arena, prompts: int = 32) -> Player:
    """The constant at the turning point: the first temperature where the log of the mean token entropy curves upwards.

    Du et al. 2025, arXiv 2502.05234: no label and no reward is used. Where it never does, the last temperature.
    """
    space = KnobSpace.of({"temperature": TURN})
    players = constants(space)
    entropies = []
    for player, value in zip(players, TURN, strict=True):
        rollouts = arena.play(player, "dev", 1, prompts)
        read = read_responses(
            arena.world.model, [arena.prompts("dev")[r.prompt].ids for r in rollouts], [r.ids for r in rollouts]
        )
        per_token = [torch.distributions.Categorical(logits=logits_TV / value).entropy() for _, logits_TV in read]
        entropies.append(torch.cat(per_token).double().mean().item())
    return players[turning_point(np.log(np.maximum(entropies, 1e-12)))]


def turning_point(log_entropy: Sequence[float] | np.ndarray) -> int:
    """Index of the first temperature whose second difference is above 0, else the last index."""
    second = np.diff(np.asarray(log_entropy), 2)
    above = np.nonzero(second > 0)[0]
    return int(above[0]) + 1 if len(above) else len(log_entropy) - 1
