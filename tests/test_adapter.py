"""Adapters on disk: what comes back, and every reason to refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_models import tiny_lm
from transformers import LlamaConfig, LlamaForCausalLM

import latentknobs as lk
from latentknobs import testbed
from latentknobs.adapter import CONFIG, ENTROPY, HEAD, RIVAL, describe_model
from latentknobs.cli import cli
from latentknobs.errors import AdapterError, ConfigError, UnknownNameError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.serving import base_of, read_picks

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
    return lk.KnobAdapter(space, heads[0], segmenter, features, describe_model(model), heads[1], ("entropy",), {"beta": 0.1})


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
    seen = lk.Context(hidden_ND=torch.randn(5, model.config.hidden_size), logits_NV=torch.randn(5, model.config.vocab_size))
    for mine, theirs in ((loaded.policy(), adapter.policy()), (loaded.rival_policy(), adapter.rival_policy())):
        assert torch.equal(mine.log_pi(seen), theirs.log_pi(seen))


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


@pytest.mark.parametrize("level", LEVELS)
def test_the_card_has_a_line_for_each_engine_that_can_run_it(model, tokenizer, tmp_path, level):
    card = (make(model, tokenizer, level).save_pretrained(tmp_path) / "README.md").read_text()
    assert "latentknobs serve testbed --adapter mine=path/to/this/folder" in card
    assert ("client = adapter.client(OpenAI(" in card) == (level == "sequence") != ("it does not work: such a server" in card)
    assert "with adapter.attach(model):" in card and "worth it" not in card


def test_the_card_says_what_the_evaluation_found(model, tokenizer, tmp_path):
    adapter = make(model, tokenizer)
    adapter.training |= {"held-out result": "It does not differ.", "gain over its mean": "+0.012 [-0.001, +0.030]"}
    card = (adapter.save_pretrained(tmp_path) / "README.md").read_text()
    assert "## Is it worth it?\n\nIt does not differ.\n" in card
    assert "| its mean | +0.012 [-0.001, +0.030] |" in card and "gain over" not in card.split("## Use it")[1]


def test_no_pickle_is_written(saved):
    assert {p.suffix for p in saved.iterdir()} == {".json", ".safetensors", ".md"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(format=7), "has format 7"),
        (lambda c: c.update(format=True), "has format True"),
        (lambda c: c.update(format=1.0), r"has format 1\.0"),
        (lambda c: c.pop("space"), "damaged"),
        (lambda c: c["space"]["knobs"][0].update(name="tempo"), "no knob 'tempo'"),
        (lambda c: c["space"]["knobs"][0].update(options=[-1.0, 0.5, 1.0]), "does not fit the knob"),
        (lambda c: c["space"]["knobs"][0].update(options=[0.0, 0.5]), "cannot be used here|does not hold a head"),
        (lambda c: c.update(level="paragraph"), "no level 'paragraph'"),
        (lambda c: c["head"].update(hidden=9), "does not hold a head for"),
        (lambda c: c["base"].update(hidden_size=64), "does not hold a head for"),
        (lambda c: c["head"].update(kind="oracle"), "There is no head 'oracle'"),
        (lambda c: c["head"].update(rank="many"), "the shape of its head is damaged: rank is 'many'"),
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


def test_reading_an_adapter_leaves_random_numbers_as_they_were_and_its_head_can_train_on(saved):
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        head = lk.KnobAdapter.from_pretrained(saved).head
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(weight.is_inference() for weight in head.parameters())


def test_older_adapters_told_one_shape_for_both_heads_and_no_rank(saved, model):
    seen = lk.Context(hidden_ND=torch.randn(5, model.config.hidden_size), logits_NV=torch.randn(5, model.config.vocab_size))
    before = lk.KnobAdapter.from_pretrained(saved)

    def older(config):
        del config["rival"], config["rival_features"], config["head"]["rank"]

    edit(saved, older)
    (saved / RIVAL).rename(saved / ENTROPY)
    now = lk.KnobAdapter.from_pretrained(saved)
    for mine, theirs in ((now.policy(), before.policy()), (now.rival_policy(), before.rival_policy())):
        assert torch.equal(mine.log_pi(seen), theirs.log_pi(seen))


def test_the_rival_is_optional(saved):
    (saved / RIVAL).unlink()
    assert lk.KnobAdapter.from_pretrained(saved).rival_policy() is None


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


OLD = Path(__file__).parent / "fixtures" / "first_edition"  # trained and saved by the code of version 0.1.0, before this format


def test_an_adapter_of_the_first_edition_loads_and_says_the_same(model):
    """The numbers are what the code that saved it said."""
    adapter = lk.KnobAdapter.from_pretrained(OLD, model)
    assert (adapter.segmenter.level, adapter.space.order, adapter.head.rank) == ("delimiter:.!?", "vllm", 3)
    hidden_ND = torch.linspace(-20, 20, 2 * 192).view(2, 192)
    seen = lk.Context(hidden_ND=hidden_ND, logits_NV=torch.linspace(-9, 9, 2 * 1024).view(2, 1024).sin() * 5)
    said = [[-1.793003, -1.765900, -1.803789, -1.776686, -1.819595, -1.792493],
            [-1.792984, -1.768102, -1.802531, -1.777648, -1.817471, -1.792589]]  # fmt: skip
    by_entropy = [[-1.787377, -1.820738, -1.776510, -1.809872, -1.761930, -1.795292],
                  [-1.787352, -1.820210, -1.775211, -1.808069, -1.763970, -1.796828]]  # fmt: skip
    torch.testing.assert_close(adapter.policy().log_pi(seen), torch.tensor(said), atol=2e-6, rtol=0)
    torch.testing.assert_close(adapter.rival_policy().log_pi(seen), torch.tensor(by_entropy), atol=2e-6, rtol=0)
    adapter.attach(model).detach()


def test_no_folder_of_this_machine_is_written(model, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "tiny-lm"
    model.save_pretrained(folder)
    found = type(model).from_pretrained(folder)
    adapter = make(found, tokenizer)
    adapter.training |= {"prompts": f"dataset:{tmp_path}/rows:train", "reward": f"command:{tmp_path}/judge.sh", "top": "1/2 | 3"}
    written = adapter.save_pretrained(tmp_path / "adapter")
    text = (written / CONFIG).read_text() + (written / "README.md").read_text()
    assert str(tmp_path) not in text and "tiny-lm" in text and "dataset:rows:train" in text and "command:judge.sh" in text
    assert r"| top | 1/2 \| 3 |" in text and "base_model" not in text
    lk.KnobAdapter.from_pretrained(written, found)  # and it is still the same model
    adapter.base["name"] = "/elsewhere/tiny-lm"  # as adapters said before
    lk.KnobAdapter.attach(adapter, found).detach()
    adapter.base["name"] = "somebody/tiny-lm"
    assert 'base_model: "somebody/tiny-lm"' in (adapter.save_pretrained(written) / "README.md").read_text()


def test_a_tilde_is_the_home_folder(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert make(model, tokenizer).save_pretrained("~/adapters/one") == tmp_path / "home" / "adapters" / "one"
    lk.KnobAdapter.from_pretrained("~/adapters/one")
    lk.attach(model, "~/adapters/one").detach()
    assert not (tmp_path / "~").exists()


def test_a_name_that_no_folder_can_have_is_still_a_name_of_a_policy(model):
    grid = ",".join(f"{n / 100:g}" for n in range(100))
    with lk.attach(model, f"uniform:temperature={grid}") as knobs:  # longer than a file's name
        assert knobs.policy.space.K == 100
    with pytest.raises(ConfigError, match="is not a path"):
        lk.attach(model, "runs/\0")


def test_attach_takes_a_policy_an_adapter_its_folder_or_a_name(model, tokenizer, tmp_path):
    adapter, inputs, said = make(model, tokenizer), tokenizer("Story: Once", return_tensors="pt"), []
    for what in (adapter, adapter.save_pretrained(tmp_path), str(tmp_path), adapter.policy()):
        with lk.attach(model, what, seed=3):
            said.append(model.generate(**inputs, max_new_tokens=12).tolist())
    assert said[1:] == said[:1] * 3
    with lk.attach(model, "sentence_start:cold=0,hot=1.5,after=.", tokenizer=tokenizer) as attached:
        model.generate(**inputs, max_new_tokens=12)
        assert attached.value_BTJ[0, 0].tolist() == [0.0] and 1.5 in attached.value_BTJ.flatten().tolist()
    with pytest.raises(UnknownNameError, match=r"There is no policy 'gready'\. Did you mean \"greedy\""):
        lk.attach(model, "gready")
    assert not hasattr(model, "_latentknobs")


def test_a_head_on_statistics_alone_fits_any_model_and_its_card_says_so(model, tokenizer, tmp_path):
    portable = make(model, tokenizer, features=("entropy", "margin"))
    space = portable.space
    portable.head = OptionHead(space, 2, 8)
    folder = portable.save_pretrained(tmp_path)
    assert "attaches to **any model**" in (folder / "README.md").read_text()
    other = tiny_lm("gpt2")
    with lk.KnobAdapter.from_pretrained(folder, other).attach(other):
        other.generate(input_ids=torch.ones(1, 3, dtype=torch.long), max_new_tokens=4, pad_token_id=0)
    assert set(read_picks(str(folder), base_of(other.config, "another model"))) == {"greedy", "sample"}  # inside a server
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **shape)).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    flags = ["--model", str(tmp_path / "lm"), "--prompt", "Story:", "--max-new-tokens", "4"]
    said = CliRunner().invoke(cli, ["generate", str(folder), *flags])
    assert said.exit_code == 0 and "Story:" in said.output, said.output
    by_sentence = make(model, tokenizer, "delimiter:.!?", features=("entropy", "margin"))
    for bound in (make(model, tokenizer), by_sentence):  # hidden states, or token ids, of one model
        assert "any model" not in (bound.save_pretrained(tmp_path / "bound") / "README.md").read_text()
        with pytest.raises(AdapterError, match="Attach it to the model it was trained on"):
            bound.attach(other)
