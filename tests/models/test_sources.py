"""What a run works on: prompts and preferences from files, datasets and objects, kept apart from what it is judged on."""

import json

import datasets
import pytest

from latentknobs import KnobSpace, testbed
from latentknobs.config import make_config
from latentknobs.data.prompts import is_held_out, make_prompts
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers.frozen import padding_id
from latentknobs.errors import ConfigError, DataError, NoPairsError
from latentknobs.models.sources import gather
from latentknobs.policies import ConstantPolicy

TEXTS = [f"Story: A cat {n}" for n in range(40)]
ROWS = [{"prompt": text, "task": "stories", "answer": None, "opener": None} for text in TEXTS]
PAIRS = [{"prompt": text, "chosen": " sat.", "rejected": " ran away."} for text in TEXTS]


@pytest.fixture(scope="module")
def model():
    return testbed.load_model()


@pytest.fixture
def sources(model):
    """The sources of some settings and objects, on a model that is loaded once."""

    def make(objects=None, **settings):
        return gather(make_config(settings), model=model, tokenizer=testbed.load_tokenizer(), **(objects or {}))

    return make


@pytest.fixture
def table(tmp_path, monkeypatch):
    """`ROWS` as a dataset on disk, and in memory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "table")
    return f"dataset:{tmp_path / 'table'}", made


class TestPrompts:
    def test_a_dataset_by_name_as_an_object_and_a_list_give_the_same(self, sources, table, tmp_path):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        named, lines = sources(prompts=table[0]), sources(prompts=str(tmp_path / "rows.jsonl"))
        objects, plain = sources({"prompts": table[1]}), sources({"prompts": ROWS})
        assert named.train == lines.train == objects.train == plain.train
        assert named.evaluation == lines.evaluation == objects.evaluation == plain.evaluation
        assert {p.text for p in named.evaluation} == {text for text in TEXTS if is_held_out(text)}
        assert named.train[0].columns["task"] == "stories"

    def test_evaluation_prompts_may_come_from_a_dataset_too(self, sources, table):
        got = sources(eval_prompts=table[0])
        assert [p.text for p in got.evaluation] == TEXTS and len(got.train) == 256

    def test_shared_prompts_are_refused(self, sources, table):
        with pytest.raises(DataError, match="is also a training prompt"):
            sources({"prompts": ROWS[:3]}, eval_prompts=table[0])

    def test_a_tokenizer_of_another_model_is_refused(self, lm):
        told = r"The tokenizer writes 'Story: A cat \d+' with the id \d+, but the model knows only 24 ids\. Pass"
        with pytest.raises(ConfigError, match=told):
            gather(make_config({}), model=lm, tokenizer=testbed.load_tokenizer(), prompts=ROWS)


class TestTokenizersThatDoNotFit:
    def test_a_pad_token_without_an_embedding_is_not_used(self, model):
        tokenizer = testbed.load_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id == 1024 and padding_id(model, tokenizer) == tokenizer.eos_token_id
        prompts, policy = make_prompts([*TEXTS[:2], "So"], tokenizer), ConstantPolicy(KnobSpace.of("temperature:0.5"), 0)
        sizes = {"max_new_tokens": 4, "batch_size": 3, "seed": 0}
        ours, theirs = (roll_out(model, each, prompts, policy, **sizes) for each in (tokenizer, testbed.load_tokenizer()))
        assert ours == theirs

    def test_ends_without_an_embedding_are_not_used_to_pad_either(self, lm):
        tokenizer = testbed.load_tokenizer()
        for name in ("pad_token", "eos_token"):
            tokenizer.add_special_tokens({name: "[END]"})
        assert padding_id(lm, tokenizer) == 0
        tokenizer.pad_token_id = tokenizer.eos_token_id = None
        assert padding_id(lm, tokenizer) == 0

    @pytest.mark.parametrize("rows", [["Story: [NEW]"], [{"prompt": "Story: [NEW]"}]])
    def test_added_tokens_without_an_embedding_are_refused_by_text(self, model, rows):
        tokenizer = testbed.load_tokenizer()
        tokenizer.add_tokens(["[NEW]"])
        with pytest.raises(ConfigError, match=r"writes 'Story: \[NEW\]' with the id 1024, but the model knows only 1024 ids"):
            gather(make_config({"eval_size": 0}), model=model, tokenizer=tokenizer, prompts=rows * 5, eval_prompts=TEXTS)

    def test_what_is_not_a_tokenizer_is_refused_in_few_words(self, model):
        with pytest.raises(ConfigError, match=r"tokenizer=\[.*\] is not a tokenizer\. Pass what AutoTokenizer") as caught:
            gather(make_config({}), model=model, tokenizer=["x" * 1000] * 1000, prompts=ROWS)
        assert len(str(caught.value)) < 300
        with pytest.raises(ConfigError, match=r"tokenizer=.* is not a tokenizer\."):
            gather(make_config({}), model=model, tokenizer=lambda text: {"input_ids": [1, 2]}, prompts=ROWS)


class TestPreferences:
    def test_they_are_read_next_to_the_prompts_of_the_evaluation(self, sources, tmp_path):
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
        got = sources(preferences=str(tmp_path / "p.jsonl"), prompts="testbed:mixture")
        assert len(got.preferences.pairs) == 40 and len(got.train) == 256
        given = {"preferences": datasets.Dataset.from_list(PAIRS)}
        assert sources(given, prompts="testbed:mixture").preferences == got.preferences
        assert sources().preferences is None

    def test_prompts_of_the_evaluation_are_left_out(self, sources):
        got = sources({"prompts": ROWS, "preferences": PAIRS})
        held_out = sum(map(is_held_out, TEXTS))
        assert len(got.preferences.pairs) == 40 - held_out
        assert f"{held_out} because their prompt is kept for the evaluation" in got.preferences.summary
        with pytest.raises(NoPairsError, match="40 because their prompt is kept for the evaluation"):
            sources({"eval_prompts": ROWS, "preferences": PAIRS})

    def test_without_other_prompts_theirs_are_split_by_hash_for_training_and_judging(self, sources):
        got = sources({"preferences": PAIRS})
        asked = {row["prompt"] for row in PAIRS}
        assert {prompt.text for prompt in got.evaluation} == set(filter(is_held_out, asked))
        assert {prompt.text for prompt in got.train} == {prompt.text for prompt in got.preferences.prompts}
        unjudged = sources({"preferences": PAIRS}, eval_size=0)
        assert not any(is_held_out(prompt.text) for prompt in (*unjudged.train, *unjudged.preferences.prompts))

    def test_lengths_are_those_of_the_run(self, sources):
        with pytest.raises(NoPairsError, match=r"a response is longer than max_new_tokens \(2\)"):
            sources({"preferences": PAIRS}, max_new_tokens=2)
        with pytest.raises(NoPairsError, match=r"prompt and response are longer than the model's context \(256\)"):
            sources(
                {"preferences": [PAIRS[0] | {"prompt": "Story: " + "a cat " * 130}]}, max_new_tokens=10, prompts="testbed:math"
            )

    def test_an_answer_ends_where_the_model_stops(self, model, monkeypatch):
        tokenizer = testbed.load_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        asked, sat, ran = ([{"role": role, "content": text}] for role, text in (
            ("user", "A cat"), ("assistant", " sat. It"), ("assistant", " ran. It")))  # fmt: skip
        period = tokenizer(".", add_special_tokens=False)["input_ids"][0]
        monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, period])
        objects = {"preferences": [{"prompt": asked, "chosen": sat, "rejected": ran}]}
        got = gather(make_config({"prompts": "testbed:math"}), model=model, tokenizer=tokenizer, **objects)
        assert [rollout.text for rollout in got.preferences.rollouts] == [" sat.", " ran."]

    def test_an_objective_that_cannot_learn_from_them_is_refused_before_anything_is_loaded(self):
        config = make_config({"model": "nowhere/at-all", "preferences": "nowhere.jsonl", "objective": "tokens"})
        with pytest.raises(ConfigError, match="The objective 'tokens' learns from the options"):
            gather(config)
