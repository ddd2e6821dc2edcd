"""Where a policy chose what: the places of a response, and rewards of recipes by name."""

from pathlib import Path

import pytest

from benchmarks.paper.arena import Arena, Player
from benchmarks.paper.hand import AfterNewline, sentence_starts
from benchmarks.paper.measures import choices, where
from benchmarks.paper.rewards import make_reward
from benchmarks.paper.worlds import load_world


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    world = load_world("testbed:invent", {"train": 4, "dev": 4, "held_out": 6})
    return Arena(world, tmp_path_factory.mktemp("arena"), {"max_new_tokens": 80, "batch_size": 64})


def test_places_of_a_response(arena: Arena) -> None:
    tokenizer = arena.world.tokenizer
    ids = tokenizer("Tom ran. Mia sat.\nAnswer: 3", add_special_tokens=False)["input_ids"]
    previous = [tokenizer("12")["input_ids"][-1], *ids[:-1]]

    def said(place: str) -> str:
        return "".join(tokenizer.decode([token]) for token, here in zip(ids, where(place, arena, previous), strict=True) if here)

    assert said("thinking") == "Tom ran. Mia sat.\n"
    assert said("answering") == "Answer: 3"
    first, rest = said("first in sentence"), said("inside sentence")
    assert "Mia" in first and "ran" in rest and "Tom" in rest  # "Tom" goes on with the prompt's sentence


def test_a_hand_rule_is_cold_exactly_after_the_newline(arena: Arena) -> None:
    policy = AfterNewline(arena.world.tokenizer, 0.0, 1.0)
    player = Player("hand", policy, "hand after_newline")
    rollouts = arena.play(player, "held_out", 2)
    assert sum("\nAnswer:" in rollout.text for rollout in rollouts) > 6
    for place, value in (("thinking", 1.0), ("answering", 0.0)):
        chosen = [c for c in choices(f"temperature, {place}", arena, player, "held_out", rollouts) if c == c]
        assert chosen and set(chosen) == {value}


def test_a_hand_rule_is_cold_exactly_at_sentence_starts(tmp_path: Path) -> None:
    world = load_world("testbed:constrained", {"train": 4, "dev": 4, "held_out": 6})  # prompts end with a sentence
    arena = Arena(world, tmp_path, {"max_new_tokens": 40, "batch_size": 64})
    player = Player("hand", sentence_starts(arena.world.tokenizer, 0.0, 1.0), "hand sentence_starts")
    rollouts = arena.play(player, "held_out", 1)
    for place, value in (("first in sentence", 0.0), ("inside sentence", 1.0)):
        assert {c for c in choices(f"temperature, {place}", arena, player, "held_out", rollouts) if c == c} == {value}


def test_a_tradeoff_is_the_weighted_sum_of_its_parts(arena: Arena) -> None:
    prompts, texts = ["p", "p"], ["the cat sat.", "the dog zzgl."]
    both = make_reward("tradeoff:0.25:spelled", arena.world)(prompts, texts)
    variety, spelled = (make_reward(name, arena.world)(prompts, texts) for name in ("variety", "spelled"))
    assert both == pytest.approx([0.25 * v + 0.75 * s for v, s in zip(variety, spelled, strict=True)])
    assert spelled == pytest.approx([1, 2 / 3]) and variety == [1.0, 1.0]
