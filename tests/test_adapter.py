"""Adapters on disk: what comes back, and every reason to refuse."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import latentknobs as lk
from latentknobs import testbed
from latentknobs.adapter import CONFIG, ENTROPY, HEAD, describe_model
from latentknobs.errors import AdapterError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level

LEVELS = ["token", "sequence", "every:4", "delimiter:.!"]


@pytest.fixture(scope="module")
def model():
    return testbed.load_model()


@pytest.fixture(scope="module")
def tokenizer():
    return testbed.load_tokenizer()


def make(model, tokenizer, level="token", features=("hidden", "entropy"), factorised=False, rank=None, widths=(8, 8)):
    space = lk.KnobSpace.of({"top_p": [0.9, 1.0]}, "temperature:0,0.5,1", order="vllm").select([0, 1, 3, 5])
    inputs = model.config.hidden_size + len(features) - 1
    torch.manual_seed(0)
    heads = [OptionHead(space, n, width, factorised, rank) for n, width in zip((inputs, 1), widths, strict=True)]
    for head in heads:
        torch.nn.init.normal_(head.mlp[-1].weight)
    segmenter = parse_level(level, tokenizer)
    return lk.KnobAdapter(space, heads[0], segmenter, features, describe_model(model), heads[1], {"beta": 0.1})


@pytest.fixture()
def saved(model, tokenizer, tmp_path):
    make(model, tokenizer).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder, change):
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("factorised", [False, True])
@pytest.mark.parametrize("rank, widths", [(None, (8, 8)), (6, (8, 8)), (None, (None, None)), (6, (7, 9))])
def test_what_was_saved_comes_back(model, tokenizer, tmp_path, level, factorised, rank, widths):
    adapter = make(model, tokenizer, level, factorised=factorised, rank=rank, widths=widths)
    loaded = lk.KnobAdapter.from_pretrained(adapter.save_pretrained(tmp_path), model)
    assert loaded.space == adapter.space
    assert loaded.segmenter == adapter.segmenter
    hidden_ND, logits_NV = torch.randn(5, model.config.hidden_size), torch.randn(5, model.config.vocab_size)
    for mine, theirs in ((loaded.policy(), adapter.policy()), (loaded.entropy_policy(), adapter.entropy_policy())):
        assert torch.equal(mine.log_pi(hidden_ND, logits_NV), theirs.log_pi(hidden_ND, logits_NV))


@pytest.mark.parametrize("level", LEVELS)
def test_an_attached_adapter_decodes_and_tells_what_it_chose(model, tokenizer, level):
    adapter = make(model, tokenizer, level)
    inputs = tokenizer(["Story: Once upon a time", "Problem: Tom has 3"], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    with adapter.attach(model) as knobs:
        sequences = model.generate(**inputs, max_new_tokens=9)
        record = knobs.record(sequences, inputs["input_ids"].shape[1], inputs["attention_mask"])
        options = knobs.option_BT[:, : record.mask_BT.shape[1]]
    assert torch.equal(options[record.mask_BT], record.option_BT[record.mask_BT])
    assert set(record.values()) == {"temperature", "top_p"}
    assert torch.isfinite(record.logps_BT[record.mask_BT]).all()
    assert not hasattr(model, "_latentknobs")


def test_the_card_says_what_it_is_for(saved):
    card = (saved / "README.md").read_text()
    assert "latentknobs/testbed" in card or "testbed" in card
    assert "temperature[0, 0.5, 1] -> top_p[0.9, 1]" in card
    assert "| beta | 0.1 |" in card


def test_no_pickle_is_written(saved):
    assert {p.suffix for p in saved.iterdir()} == {".json", ".safetensors", ".md"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(format=7), "has format 7"),
        (lambda c: c.pop("space"), "damaged"),
        (lambda c: c["space"]["knobs"][0].update(name="tempo"), "no knob 'tempo'"),
        (lambda c: c["space"]["knobs"][0].update(options=[-1.0, 0.5, 1.0]), "does not fit the knob"),
        (lambda c: c["space"]["knobs"][0].update(options=[0.0, 0.5]), "cannot be used here|does not hold a head"),
        (lambda c: c.update(level="paragraph"), "no level 'paragraph'"),
        (lambda c: c["head"].update(hidden=9), "does not hold a head for"),
        (lambda c: c["base"].update(hidden_size=64), "does not hold a head for"),
    ],
)
def test_a_changed_config_is_refused(saved, change, told):
    edit(saved, change)
    with pytest.raises(AdapterError, match=told):
        lk.KnobAdapter.from_pretrained(saved)


def test_missing_files_are_named(saved, tmp_path):
    (saved / HEAD).unlink()
    with pytest.raises(AdapterError, match=f"{HEAD} is missing"):
        lk.KnobAdapter.from_pretrained(saved)
    with pytest.raises(AdapterError, match="There is no adapter in"):
        lk.KnobAdapter.from_pretrained(tmp_path / "nowhere")


def test_a_head_of_other_sizes_is_refused(saved):
    tensors = load_file(saved / HEAD)
    tensors["mlp.0.weight"] = tensors["mlp.0.weight"][:, :-1].contiguous()
    save_file(tensors, saved / HEAD)
    with pytest.raises(AdapterError, match="does not hold a head for"):
        lk.KnobAdapter.from_pretrained(saved)


def test_older_adapters_told_one_shape_for_both_heads_and_no_rank(saved, model):
    hidden_ND, logits_NV = torch.randn(5, model.config.hidden_size), torch.randn(5, model.config.vocab_size)
    before = lk.KnobAdapter.from_pretrained(saved)

    def older(config):
        del config["entropy_head"], config["head"]["rank"]

    edit(saved, older)
    now = lk.KnobAdapter.from_pretrained(saved)
    for mine, theirs in ((now.policy(), before.policy()), (now.entropy_policy(), before.entropy_policy())):
        assert torch.equal(mine.log_pi(hidden_ND, logits_NV), theirs.log_pi(hidden_ND, logits_NV))


def test_the_entropy_head_is_optional(saved):
    (saved / ENTROPY).unlink()
    assert lk.KnobAdapter.from_pretrained(saved).entropy_policy() is None


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("hidden_size", 64, "hidden size 64"), ("vocabulary", 5, "vocabulary 5"), ("layers", 9, "number of layers 9")],
)
def test_another_model_is_refused_with_what_differs(model, tokenizer, key, value, told):
    adapter = make(model, tokenizer)
    adapter.base[key] = value
    with pytest.raises(AdapterError, match=told):
        adapter.attach(model)
    assert not hasattr(model, "_latentknobs")


def test_another_name_is_refused_unless_told_otherwise(model, tokenizer):
    adapter = make(model, tokenizer)
    adapter.base["name"] = "somebody/else"
    with pytest.raises(AdapterError, match="strict=False"):
        adapter.attach(model)
    adapter.attach(model, strict=False).detach()


def test_a_moved_folder_loads(saved, tmp_path, model):
    shutil.move(saved, tmp_path / "elsewhere")
    lk.KnobAdapter.from_pretrained(tmp_path / "elsewhere", model).attach(model).detach()
    assert not hasattr(model, "_latentknobs")
