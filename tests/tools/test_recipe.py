"""The corpus: its deliberate noise, and what it must not contain. Needs no data."""

import json
import random
import re

import pytest

from latentknobs.rewards.text import split_sentences
from latentknobs.testbed import words
from latentknobs.testbed.tasks import split_of
from tools.testbed.recipe import (
    ADHERENCE,
    SLIP_RATE,
    Document,
    constrain,
    read_sampled,
    worked_problem,
)
from tools.testbed.sample_stories import read_stories
from tools.testbed.tokenizer import train_tokenizer

STORY = Document(" ".join(f"The frog saw {i} birds." for i in range(8)) + ' "Hi," he said.')


def test_steps_are_wrong_as_often_as_documented():
    rng = random.Random(0)
    steps = [step for _ in range(1500) for step in re.findall(r"(\d+)([+-])(\d+)=(\d+)\.", worked_problem(rng))]
    wrong = [(a, b, c) for a, sign, b, c in steps if int(c) != int(a) + (1 if sign == "+" else -1) * int(b)]
    assert len(steps) == 3000
    assert len(wrong) / len(steps) == pytest.approx(SLIP_RATE, abs=0.02)


def test_the_work_is_consistent_after_a_slip():
    rng = random.Random(1)
    for _ in range(300):
        work = re.search(r"=(\d+)\. (\d+)[+-]\d+=(\d+)\. So (\d+)\.$", worked_problem(rng))
        assert work is not None
        result, carried, second, last = work.groups()
        assert (result, second) == (carried, last)


def test_problems_come_from_the_training_split():
    rng = random.Random(2)
    prompts = [worked_problem(rng).partition("Answer:") for _ in range(200)]
    assert {split_of(head + sep) for head, sep, _ in prompts} == {"train"}


def test_constrained_stories_keep_the_rule_as_often_as_documented():
    rng = random.Random(0)
    kept = []
    for _ in range(200):
        document = constrain(STORY, rng)
        header, _, story = document.text.partition("\nStory: ")
        opener = header.removeprefix("Rule: ")
        assert opener in words.OPENERS
        sentences = split_sentences(story)
        assert sentences[0].startswith(f"{opener}, the")
        kept += [sentence.startswith(f"{opener}, ") for sentence in sentences[1:]]
    assert sum(kept) / len(kept) == pytest.approx(ADHERENCE, abs=0.04)


def test_dialogue_is_left_out_and_short_stories_are_not_used():
    assert "Hi" not in constrain(STORY, random.Random(0)).text
    assert constrain(Document("He ran. She ran."), random.Random(0)) is None


def test_another_opener_is_taken_away_first():
    story = Document(" ".join(["But the frog ran away."] * 6))
    texts = [constrain(story, random.Random(seed)).text for seed in range(20)]
    assert not any(re.search(r"(Then|So|Now|And|Soon), but", text) for text in texts)


def test_cut_samples_end_at_a_sentence(tmp_path):
    cut = {"text": "The frog ran. " * 10 + "He sa", "complete": False}
    (tmp_path / "s.jsonl").write_text(json.dumps(cut) + "\n" + json.dumps({"text": "Short.", "complete": True}) + "\n")
    assert read_sampled(tmp_path / "s.jsonl") == [Document(("The frog ran. " * 10).strip(), complete=False)]


def test_real_stories_are_read_with_plain_quotes(tmp_path):
    (tmp_path / "tinystories").mkdir()
    story = "“Hi,” said the frog. " * 8
    (tmp_path / "tinystories" / "tinystories_sample.txt").write_text(f"{story}\n<|endoftext|>\nToo short.", "utf-8")
    assert read_stories(tmp_path) == [('"Hi," said the frog. ' * 8).strip()]


def test_a_trained_tokenizer_is_lossless_on_ascii():
    tokenizer = train_tokenizer([STORY.text] * 3, vocab_size=160, context=64)
    text = "".join(map(chr, range(32, 127))) + "\n\n  two  spaces\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
