"""The packaged LM itself: small enough, offline, and able to do the three tasks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.rewards import Lexicon, SentenceConstraint
from latentknobs.rewards.text import complete_words
from latentknobs.testbed import MAX_NEW_TOKENS, load_model, load_tokenizer, prompts
from latentknobs.testbed import testbed_reward as reward_of
from latentknobs.testbed.model_files import MODEL_DIR
from tools.testbed.measure import complete

MAX_PARAMETERS = 1_500_000
MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def completions_at(model, tokenizer, task, n, temperature):
    rows = prompts(task, "eval", n, seed=11)
    torch.manual_seed(0)
    texts = [row["prompt"] for row in rows]
    return rows, complete(model, tokenizer, texts, temperature=temperature)[0]


def columns_of(rows):
    return {key: [row[key] for row in rows] for key in ("task", "answer", "opener")}


def test_it_is_small(model):
    assert sum(parameter.numel() for parameter in model.parameters()) <= MAX_PARAMETERS
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= MAX_BYTES


def test_it_is_loaded_frozen_in_float32_and_eval_mode(model):
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_prompts_and_completions_fit_the_context(model, tokenizer):
    rows = prompts("mixture", "train", 300) + prompts("mixture", "eval", 300)
    longest = max(len(ids) for ids in tokenizer([row["prompt"] for row in rows])["input_ids"])
    assert longest + MAX_NEW_TOKENS <= model.config.max_position_embeddings


@given(text=st.text(alphabet=[*map(chr, range(32, 127)), "\n"], max_size=60))
def test_tokenizer_is_lossless_and_digits_are_single(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert all(len(token) == 1 for token in tokenizer.convert_ids_to_tokens(ids) if any(c.isdigit() for c in token))


def test_tokenizer_pads_left_and_marks_the_start(tokenizer):
    batch = tokenizer(["Story:", "Story: Once upon a time"], padding=True)["input_ids"]
    assert batch[0][0] == tokenizer.pad_token_id
    assert batch[1][0] == tokenizer.bos_token_id
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_cold_math_is_mostly_right_and_much_better_than_warm(model, tokenizer):
    rows, cold = completions_at(model, tokenizer, "math", 64, 0.0)
    _, warm = completions_at(model, tokenizer, "math", 64, 1.2)
    texts = [row["prompt"] for row in rows]
    cold_rate, warm_rate = (np.mean(reward_of(texts, done, **columns_of(rows))) for done in (cold, warm))
    assert cold_rate >= 0.8
    assert warm_rate <= cold_rate - 0.15


def test_stories_are_spelled_right_when_not_too_warm(model, tokenizer):
    _, stories = completions_at(model, tokenizer, "stories", 48, 0.6)
    found = [word for story in stories for word in complete_words(story)]
    assert len(found) > 48 * 25
    assert sum(word in Lexicon.packaged() for word in found) / len(found) >= 0.98


def test_the_rule_is_kept_cold_and_less_so_warm(model, tokenizer):
    rates = []
    for temperature in (0.2, 1.2):
        rows, stories = completions_at(model, tokenizer, "constrained", 48, temperature)
        openers = [row["opener"] for row in rows]
        rates.append(np.mean(SentenceConstraint()([row["prompt"] for row in rows], stories, opener=openers)))
    assert rates[0] >= 0.9
    assert rates[1] <= rates[0] - 0.15


def test_greedy_text_does_not_depend_on_the_batch(model, tokenizer):
    rows, together = completions_at(model, tokenizer, "math", 8, 0.0)
    alone = [complete(model, tokenizer, [row["prompt"]], temperature=0.0)[0][0] for row in rows[:2]]
    assert together[:2] == alone
