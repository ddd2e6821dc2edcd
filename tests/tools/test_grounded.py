"""The grounded task: facts contradict memory, splits are apart, and attribution and novelty are read off a text."""

import math
import random

import pytest
import torch

from latentknobs.data.prompts import is_held_out
from tools.testbed import grounded

WELL = "Lily has a red ball . She likes to play in the park with a little frog ."


def test_facts_contradict_memory_and_the_prompt_without_them_is_its_end() -> None:
    for row in grounded.rows("train", 50):
        assert row["answer"] != row["memory"] and row["answer"] in row["prompt"]
        assert row["prompt"].endswith(row["prompt_without_evidence"]) and row["answer"] not in row["prompt_without_evidence"]


def test_documents_hold_no_held_out_prompt() -> None:
    rng, held_out = random.Random(0), {row["prompt"] for row in grounded.rows("eval", 50)}
    assert all(map(is_held_out, held_out)) and len(held_out) == 50
    documents = [grounded.document(rng) for _ in range(400)]
    open_book = [(prompt, response) for prompt, response in documents if prompt.startswith("Facts")]
    assert not any(is_held_out(prompt) for prompt, _ in open_book)
    kept = [grounded.is_grounded(response, _fact(prompt)) for prompt, response in open_book]
    assert 0.55 < sum(kept) / len(kept) < 0.75, "about a third answers from memory"
    assert all(grounded.novelty(response) or grounded.free_words(response) for _, response in documents)


def _fact(prompt: str) -> str:
    name = prompt.partition("what has ")[2].split()[0]
    return next(f"{line.strip()} ." for line in prompt[7:].split(".") if line.strip().startswith(f"{name} "))


def test_every_word_is_one_token_and_responses_come_back_as_text() -> None:
    tokenizer, (prompt, response) = grounded.new_tokenizer(), grounded.document(random.Random(1))
    ids = tokenizer(response)["input_ids"]
    assert len(ids) == 1 + len(response.split()) and tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == response


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    tokenizer = grounded.new_tokenizer()
    model = grounded.new_model(tokenizer)
    assert grounded.train(model, tokenizer, 12, 0) < math.log(len(tokenizer)) + 0.1
    assert model.num_parameters() * 4 < 3e6, "bytes"


@pytest.mark.parametrize(
    ("completion", "attributed", "novelty"),
    [
        (WELL, 1, 0.0),  # "play", "park", "little" and the frog are the first of their lists
        (WELL.replace("red", "blue"), 0, 0.0),
        (WELL.replace("frog", "goat"), 1, 0.25),
        (WELL.replace("frog", "dragon"), 1, 0.0),
        (WELL + " She", 1, 0.0),
        ("", 0, 0.0),
    ],
)
def test_rewards_are_attribution_and_novelty(completion: str, attributed: int, novelty: float) -> None:
    assert grounded.novelty(completion) == pytest.approx(novelty)
    (found,) = grounded.reward([""], [completion], ["Lily has a red ball ."])
    assert found == pytest.approx(attributed + novelty)


def test_corrupted_documents_state_other_things_in_shuffled_words() -> None:
    texts = [grounded.document(random.Random(i), corrupted=True)[1] for i in range(40)]
    assert sum(grounded.free_words(text) is not None for text in texts) < 5
