"""The baselines that the reviewers requested: families of policies, each tuned on dev prompts over a small grid."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import families
from benchmarks.paper.arena import Arena, Player
from benchmarks.paper.hand import RULES
from benchmarks.paper.measures import measure
from latentknobs.engines.transformers.frozen import read_responses
from latentknobs.evaluation.tuning import members, settings_of
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import ConstantPolicy, GreedyPolicy, UniformPolicy
from latentknobs.policies.names import policy_of

COLD = [0.0, 0.2, 0.4]
HAND = {"hand": {"cold": COLD, "hot": [0.8, 1.0, 1.2, 1.4]},
        "hand_min_p": {"cold": COLD, "hot": [1.0, 1.2, 1.4, 1.6], "min_p": [0.05, 0.1, 0.15]}}  # fmt: skip

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
    if name not in HAND:
        return [Player(spec, policy_of(spec), spec) for spec in families.family(name)]
    rule, players = RULES[str(hand)], []
    for spec in members(name, **HAND[name]):
        settings = [float(item.partition("=")[2]) for item in spec.partition(":")[2].split(",")]
        players.append(Player(spec, rule(arena.world.tokenizer, *settings), f"{spec} {hand}"))
    return players


def tuned(name: str, arena: Arena, target: str, copies: int, hand: str | None = None) -> Player:
    """The member of a family that is best on dev prompts, renamed after its family."""

    def value(player: Player, limit: int) -> float:
        return float(dev_values(player, arena, target, copies, limit).mean())

    if name == "turn":
        best = turn(arena)
    else:
        players = {player.name: player for player in family(name, arena, hand)}
        make = RULES[str(hand)] if name in HAND else None

        def score(spec: str, limit: int) -> float:
            if spec not in players:
                policy = make(arena.world.tokenizer, *settings_of(spec).values()) if make else policy_of(spec)
                players[spec] = Player(spec, policy, f"{spec} {hand}" if make else spec)
            return value(players[spec], limit)

        best = players[families.tuned(list(players), len(arena.prompts("dev")), score)[0]]
    label = {"hand": "hand rule", "hand_min_p": "hand rule with min-p", "joint": "best joint constant"}.get(name, name)
    return Player(f"{label}: {best.name.partition(':')[2]}", best.policy, best.key)


def dev_values(player: Player, arena: Arena, target: str, copies: int, limit: int | None = None) -> NDArray[np.float64]:
    """(S, P) a measure on the first dev prompts."""
    return measure(target, arena, player, "dev", arena.play(player, "dev", copies, limit), copies)


def turn(arena: Arena, prompts: int = 32) -> Player:
    """The constant at the turning point of the entropy of what it samples (`families.turning_point`)."""
    players = family("temperature", arena)
    entropies = []
    for player, value in zip(players, families.TURN, strict=True):
        rollouts = arena.play(player, "dev", 1, prompts)
        read = read_responses(
            arena.world.model, [arena.prompts("dev")[r.prompt].ids for r in rollouts], [r.ids for r in rollouts]
        )
        per_token = [torch.distributions.Categorical(logits=logits_TV / value).entropy() for _, logits_TV in read]
        entropies.append(torch.cat(per_token).double().mean().item())
    return players[families.turning_point(entropies)]
