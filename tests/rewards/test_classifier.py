"""Reward models: small ones made here, one of them trained until it prefers something."""

import json

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from latentknobs import testbed
from latentknobs.errors import ConfigError, RewardError
from latentknobs.rewards import Classifier, resolve_reward, resolve_rewards, score_all
from latentknobs.testing import check_reward

CHAT = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
KIND = ["a kind happy dog", "the happy kind frog", "he was so happy and kind", "kind and happy they were"]
CRUEL = ["a mean angry dog", "the angry mean frog", "he was so angry and mean", "mean and angry they were"]
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer_for(folder, **changes):
    tokenizer = testbed.load_tokenizer()
    tokenizer.pad_token = tokenizer.decode([0])
    tokenizer.padding_side = "left"  # as reward models often ship: the reward must not care
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return tokenizer


def llama(folder, **settings):
    torch.manual_seed(0)
    size = len(testbed.load_tokenizer())
    config = LlamaConfig(vocab_size=size, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, **SHAPE, **settings)
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def kind(tmp_path_factory):
    """A folder with a reward model that was really trained to prefer kind texts, as pairs, with the Bradley-Terry loss."""
    folder = tmp_path_factory.mktemp("kind")
    tokenizer = tokenizer_for(folder, chat_template=CHAT)
    tokenizer.padding_side = "right"
    model = llama(folder, num_labels=1)
    batches = [tokenizer(texts, padding=True, return_tensors="pt") for texts in (KIND, CRUEL)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        good_B1, bad_B1 = (model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits for b in batches)
        loss = -torch.nn.functional.logsigmoid(good_B1 - bad_B1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    model.save_pretrained(folder)
    return folder


def test_it_prefers_what_it_was_trained_to_prefer(kind):
    reward = resolve_reward(f"classifier:path={kind},batch_size=3")
    prompts = ["Story: "] * 4
    happy = reward(prompts, ["happy and kind was he", "a kind frog", "the happy dog", "a happy kind happy end"])
    angry = reward(prompts, ["angry and mean was he", "a mean frog", "the angry dog", "a mean angry mean end"])
    assert min(happy) > max(angry)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_batches_give_what_one_by_one_gives(kind, device):
    texts = ["a", "a kind dog ran", "mean " * 12, "happy.", "the frog swam in the pond", "x", "angry " * 30]
    together, alone = Classifier(str(kind), batch_size=4, device=device), Classifier(str(kind), batch_size=1, device=device)
    found = together(["Story: "] * 7, texts)
    assert found == pytest.approx([alone(["Story: "], [text])[0] for text in texts], abs=1e-5)
    assert found == pytest.approx(together(["Story: "] * 7, texts[::-1])[::-1], abs=1e-5)
    assert str(together.model.device).startswith(device)


def test_it_is_the_models_own_logit(kind):
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(kind).eval(), testbed.load_tokenizer()
    expected = model(**tokenizer("Story: a dog", return_tensors="pt", return_token_type_ids=False)).logits.item()
    assert Classifier(str(kind))(["Story: "], ["a dog"]) == pytest.approx([expected], abs=1e-5)


def test_a_conversation_goes_through_its_own_chat_template(kind):
    reward = Classifier(str(kind))
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    reply = [{"role": "assistant", "content": "a kind dog"}]
    text = "<system> s\n<user> hi\n<assistant> a kind dog\n"
    ids = reward.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert reward._ids(asked, reply) == ids
    begun = [*asked, {"role": "assistant", "content": "a kind"}]
    assert reward._ids(begun, [{"role": "assistant", "content": " dog"}]) == ids
    scores = score_all(reward, [tuple(asked)] * 2, ["a kind happy dog", "a mean angry dog"], {})
    assert scores[0].value > scores[1].value


def test_a_tokenizer_without_chat_template_says_so(tmp_path):
    llama(tmp_path, num_labels=1)
    tokenizer_for(tmp_path, chat_template=None)
    with pytest.raises(RewardError, match=r"has no chat template. Give a reward model for chats, or plain prompts"):
        score_all(Classifier(str(tmp_path)), [({"role": "user", "content": "hi"},)], ["ho"], {})


def test_a_template_that_refuses_costs_that_conversation_only(kind):
    reward = Classifier(str(kind))
    reward.tokenizer.chat_template = "{{ raise_exception('no system') if messages[0]['role'] == 'system' else 'fine' }}"
    asked = [({"role": role, "content": "x"},) for role in ("system", "user")]
    scores = score_all(reward, asked, ["a", "b"], {})
    assert scores[0].value is None and "refuses the conversation: no system" in scores[0].error
    assert scores[1].value is not None


def test_what_is_too_long_or_empty_is_not_cut_but_has_no_score(kind):
    scores = score_all(Classifier(str(kind)), ["Story: "] * 2, ["dog " * 100, "dog"], {})
    assert scores[0].value is None and "between 1 and the 64 that" in scores[0].error
    assert scores[1].value is not None


class TestLabels:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("labels")
        tokenizer_for(folder)
        torch.manual_seed(1)
        size = len(testbed.load_tokenizer())
        names = {0: "bad", 1: "good", 2: "odd"}
        config = BertConfig(vocab_size=size, max_position_embeddings=64, id2label=names, pad_token_id=0, **SHAPE)
        BertForSequenceClassification(config).save_pretrained(folder)
        return folder

    def test_the_log_probability_of_each_label(self, folder):
        texts = ["a dog", "a longer text about a frog", "x"]
        found = [Classifier(str(folder), label=label)(["p "] * 3, texts) for label in ("bad", "good", "odd")]
        total = torch.tensor(found).exp().sum(0)
        assert total.tolist() == pytest.approx([1.0] * 3)
        assert Classifier(str(folder), label="1")(["p "] * 3, texts) == found[1]
        assert Classifier(str(folder), label="good", batch_size=1)(["p "] * 3, texts) == pytest.approx(found[1], abs=1e-5)

    def test_independent_labels(self, folder, tmp_path):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        model.config.problem_type = "multi_label_classification"
        model.save_pretrained(tmp_path)
        tokenizer = tokenizer_for(tmp_path)
        logits_1L = model(**tokenizer("p a dog", return_tensors="pt", return_token_type_ids=False)).logits
        expected = torch.nn.functional.logsigmoid(logits_1L[0, 2]).item()
        assert Classifier(str(tmp_path), label="odd")(["p "], ["a dog"]) == pytest.approx([expected], abs=1e-5)

    @pytest.mark.parametrize(
        "label, told", [("", "needs a label"), (",label=nice", "has no label 'nice'"), (",label=3", "label '3'")]
    )
    def test_a_missing_or_unknown_label_lists_them(self, folder, label, told):
        with pytest.raises(ConfigError, match=f"{told}: choose one of bad, good, odd"):
            resolve_reward(f"classifier:path={folder}{label}")


def test_a_label_for_a_model_with_one_output_is_refused(kind):
    with pytest.raises(ConfigError, match="has one output, so there is no label 'good'"):
        Classifier(str(kind), label="good")


def test_a_model_without_padding_token_reads_one_by_one(kind, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(kind)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer_for(tmp_path, pad_token=None)
    texts = ["a kind dog", "x", "an angry frog swam"]
    reward = Classifier(str(tmp_path))
    assert reward.pad is None
    assert reward(["p "] * 3, texts) == pytest.approx(Classifier(str(kind))(["p "] * 3, texts), abs=1e-5)


class TestRefused:
    def test_no_model_at_all(self, tmp_path):
        with pytest.raises(ConfigError, match=r"nowhere' cannot be loaded: .*Give a folder or hub id of a sequence classifier"):
            Classifier(str(tmp_path / "nowhere"))

    def test_a_language_model_has_no_trained_classifier(self):
        from latentknobs.testbed.model_files import MODEL_DIR

        with pytest.raises(ConfigError, match=r"holds no trained classifier: the weights score.weight are missing"):
            Classifier(str(MODEL_DIR))

    def test_pickled_weights(self, kind, tmp_path):
        model = AutoModelForSequenceClassification.from_pretrained(kind)
        tokenizer_for(tmp_path)
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(ConfigError, match=r"cannot be loaded: .*whose weights are safetensors"):
            Classifier(str(tmp_path))

    def test_damaged_weights(self, kind, tmp_path):
        tokenizer_for(tmp_path)
        (tmp_path / "config.json").write_text((kind / "config.json").read_text())
        (tmp_path / "model.safetensors").write_bytes((kind / "model.safetensors").read_bytes()[:-50])
        with pytest.raises(ConfigError, match="cannot be loaded"):
            Classifier(str(tmp_path))

    def test_code_of_the_models_own(self, kind, tmp_path):
        tokenizer_for(tmp_path)
        config = json.loads((kind / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Own"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(ConfigError, match="cannot be loaded"):
            Classifier(str(tmp_path))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
    def test_a_device_that_is_not_there(self, kind, device):
        with pytest.raises(ConfigError, match=f"cannot be used on the device '{device}'.*Use auto, cpu or cuda"):
            Classifier(str(kind), device=device)

    def test_an_impossible_batch_size(self, kind):
        with pytest.raises(ConfigError, match="batch_size=0"):
            Classifier(str(kind), batch_size=0)


def test_other_weights_are_another_reward(kind, tmp_path):
    spec = f"classifier:path={kind}"
    assert resolve_rewards(spec).key == resolve_rewards(spec).key != resolve_rewards(f"{spec},batch_size=2").key
    for file in kind.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = resolve_rewards(f"classifier:path={tmp_path}").key
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        model.score.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path)
    assert resolve_rewards(f"classifier:path={tmp_path}").key != before


def test_it_keeps_the_contract_of_rewards(kind):
    check_reward(f"classifier:path={kind},batch_size=2")
