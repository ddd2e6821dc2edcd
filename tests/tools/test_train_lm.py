"""How the LM is trained: packing, the loss, the schedule, and a few real steps. Needs no data."""

import json

import pytest
import torch

from latentknobs.rewards import Lexicon
from tools.testbed.make_lexicon import recipe_lexicon
from tools.testbed.recipe import Document
from tools.testbed.tokenizer import train_tokenizer
from tools.testbed.train_lm import CONTEXT, SHAPES, Schedule, new_model, next_token_loss, pack, train

TEXT = "Story: Once upon a time, there was a frog. The frog had 12 friends."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT] * 2, vocab_size=150, context=CONTEXT)


def test_only_complete_documents_are_followed_by_the_end(tokenizer):
    documents = [Document(TEXT), Document(TEXT, complete=False)] * 20
    rows = pack(documents, tokenizer)
    assert rows.shape[1] == CONTEXT
    stream = rows.flatten().tolist()
    starts = [i for i, token in enumerate(stream) if token == tokenizer.bos_token_id]
    ended = [stream[i - 1] == tokenizer.eos_token_id for i in starts[1:]]
    assert ended[:4] == [True, False, True, False]


def test_the_start_of_the_next_document_is_no_target(tokenizer):
    torch.manual_seed(0)
    model = new_model(tokenizer)
    ids = torch.randint(4, 100, (2, 12))
    ids[:, -1] = tokenizer.bos_token_id
    loss = next_token_loss(model, ids, tokenizer.bos_token_id)
    assert loss.item() == pytest.approx(next_token_loss(model, ids[:, :-1], tokenizer.bos_token_id).item(), abs=0.02)


def test_the_pace_warms_up_and_decays_to_nothing():
    schedule = Schedule(tokens=1000 * 20 * CONTEXT, rows_per_step=20, warmup_steps=10)
    assert schedule.steps == 1000
    assert schedule.pace(0) == pytest.approx(0.1)
    assert schedule.pace(10) == pytest.approx(0.99)
    assert schedule.pace(999) == pytest.approx(0.001)


def test_shapes_grow_and_span_a_factor_of_ten(tokenizer):
    sizes = {size: new_model(tokenizer, size).num_parameters() for size in SHAPES}
    assert list(sizes.values()) == sorted(sizes.values())
    assert sizes["packaged"] == 1_377_600
    assert sizes["packaged"] >= 10 * sizes["mini"]


def test_a_few_steps_lower_the_loss_and_save_small_float16_weights(tokenizer, tmp_path):
    torch.manual_seed(0)
    rows = pack([Document(TEXT)] * 60, tokenizer)
    schedule = Schedule(tokens=24 * 2 * CONTEXT, rows_per_step=2, warmup_steps=2, snapshot_every=100)
    untrained = next_token_loss(new_model(tokenizer, "mini"), rows[:2].long(), tokenizer.bos_token_id).item()
    assert train(rows, tokenizer, schedule, tmp_path, "mini") < untrained - 1
    assert {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "tokenizer.json", "config.json"}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"


def test_lexicon_trusts_real_stories_and_known_words_only(tmp_path):
    for folder in ("tinystories", "wikitext-2", "gsm8k"):
        (tmp_path / folder).mkdir()
    real = "The happy frog jumped over the pond again and again. " * 3
    (tmp_path / "tinystories" / "tinystories_sample.txt").write_text(real)
    (tmp_path / "wikitext-2" / "valid.txt").write_text("A microphone .")
    (tmp_path / "gsm8k" / "train.jsonl").write_text("{}")
    sampled = "The rubbit saw the frog's microphone. " * 5
    (tmp_path / "s.jsonl").write_text(json.dumps({"text": sampled, "complete": True}) + "\n")
    lexicon = recipe_lexicon(tmp_path, tmp_path / "s.jsonl")
    assert isinstance(lexicon, Lexicon)
    assert {"jumped", "microphone", "frog's", "lily"} <= set(lexicon.counts)
    assert not {"rubbit", "saw"} & set(lexicon.counts)
    assert lexicon.counts["the"] == 2 * 3 + 2 * 5
