"""The grounded task: facts contradict memory, splits are apart, and attribution and novelty are read off a text."""

import random

import pytest

from latentknobs.data.prompts import is_held_out
from tools.testbed import grounded

WELL = " Lily has a red ball. She likes to play in the park with a little frog."


def test_facts_contradict_memory_and_the_prompt_without_them_is_its_end() -> None:
    for row in grounded.rows("train", 50):
        assert row["answer"] != row["memory"] and row["answer"] in row["prompt"]
        assert row["prompt"].endswith(row["prompt_without_evidence"]) and row["answer"] not in row["prompt_without_evidence"]


def test_documents_hold_no_held_out_prompt() -> None:
    rng, held_out = random.Random(0), {row["prompt"] for row in grounded.rows("eval", 50)}
    assert all(map(is_held_out, held_out)) and len(held_out) == 50
    texts = [grounded.document(rng).text for _ in range(300)]
    assert not any(is_held_out(text[: text.index("Answer:") + 7]) for text in texts if text.startswith("Facts"))
    kept = [grounded.is_grounded(text.partition("Answer:")[2], _fact(text)) for text in texts if text.startswith("Facts")]
    assert 0.5 < sum(kept) / len(kept) < 0.8, "about a third answers from memory"


def _fact(text: str) -> str:
    name = text.partition("What does ")[2].partition(" ")[0]
    return next(line for line in text.partition("\n")[0][7:].replace(". ", ".|").split("|") if line.startswith(f"{name} "))


@pytest.mark.parametrize(
    ("completion", "attributed", "novelty"),
    [
        (WELL, 1, 0.0),  # "play", "park", "little" and the frog are the first of their lists
        (WELL.replace("red", "blue"), 0, 0.0),
        (WELL.replace("frog", "goat"), 1, 0.25),
        (WELL.replace("frog", "dragon"), 1, 0.0),
        (WELL + " And", 1, 0.0),
        ("", 0, 0.0),
    ],
)
def test_rewards_are_attribution_and_novelty(completion: str, attributed: int, novelty: float) -> None:
    assert grounded.novelty(completion) == pytest.approx(novelty)
    (found,) = grounded.reward([""], [completion], ["Lily has a red ball."])
    assert found == pytest.approx(attributed + novelty)


def test_corrupted_documents_state_other_things_in_shuffled_words() -> None:
    texts = [grounded.document(random.Random(i), corrupted=True).text for i in range(40)]
    assert sum(grounded.free_words(text.partition("Answer:")[2]) is not None for text in texts) < 5
