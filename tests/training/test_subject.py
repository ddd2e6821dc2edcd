"""Whatever can change a result is in the key of the first stage, by content: each input is perturbed and the digest moves."""

import copy
import json
from typing import ClassVar

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, normalizers

import latentknobs as lk
from latentknobs import testbed
from latentknobs.data.prompts import Prompt
from latentknobs.heads.segmenters import parse_level
from latentknobs.knobs import registry
from latentknobs.knobs.knob import ScalingKnob
from latentknobs.training.subject import model_input, reward_input, subject

SHAPE = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))


def make(model=None, tokenizer=None, knobs=("temperature:0.5,1",), order="transformers", level="token"):
    model, tokenizer = model or llama(), tokenizer or testbed.load_tokenizer()
    return subject(model, tokenizer, lk.KnobSpace.of(*knobs, order=order), parse_level(level, tokenizer))


@pytest.fixture(scope="module")
def unchanged():
    return make()


def test_the_same_content_from_elsewhere_has_the_same_digest(unchanged, tmp_path):
    model, tokenizer = llama(), testbed.load_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert make(loaded) == make() == unchanged
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)  # a call leaves its settings in the backend
    assert make(tokenizer=tokenizer) == unchanged


def names(part):
    return [name for name, _ in getattr(llama(), part)()]


@pytest.mark.parametrize("name", names("named_parameters") + names("named_buffers"))
def test_one_bit_of_any_weight_or_buffer(unchanged, name):
    model = llama()
    tensor = dict(model.named_parameters())[name] if name in names("named_parameters") else dict(model.named_buffers())[name]
    with torch.no_grad():
        tensor.view(torch.int32).view(-1)[-1] ^= 1
    assert make(model) != unchanged


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, dict):
        return {**value, "rope_theta": 2.0}
    return [*value, 1] if isinstance(value, list) else f"{value}_"


SKIPPED = {"transformers_version", "_name_or_path", "architectures", "model_type", "dtype"}  # names, and the weights' format
FIELDS = sorted(set(llama().config.to_dict()) - SKIPPED)


@pytest.mark.parametrize("name", FIELDS)
def test_any_field_of_the_config(unchanged, name):
    model = llama()
    before = getattr(model.config, name)
    vars(model.config)[name] = torch.float16 if isinstance(before, torch.dtype) else other(before)
    assert make(model) != unchanged


GENERATION = sorted(set(transformers.GenerationConfig().to_dict()) - SKIPPED)


@pytest.mark.parametrize("name", GENERATION)
def test_any_field_of_the_generation_config(unchanged, name):
    model = llama()
    setattr(model.generation_config, name, other(getattr(model.generation_config, name)))
    assert make(model) != unchanged


def test_number_format_and_attention(unchanged):
    assert make(llama().bfloat16()) != unchanged
    model = llama()
    model.set_attn_implementation("eager")
    assert make(model) != unchanged


def added(tokenizer):
    tokenizer.add_tokens(AddedToken("zzz", lstrip=True))


def template(tokenizer):
    tokenizer.chat_template = "{{ messages }}"


def lowercase(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def end(tokenizer):
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(5)


def spaces(tokenizer):
    tokenizer.clean_up_tokenization_spaces = not tokenizer.clean_up_tokenization_spaces


def merges(tokenizer):
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(json.dumps(rules))


@pytest.mark.parametrize("change", [added, template, lowercase, end, spaces, merges])
def test_any_part_of_the_tokenizer(unchanged, change):
    tokenizer = testbed.load_tokenizer()
    change(tokenizer)
    assert make(tokenizer=tokenizer) != unchanged


@pytest.mark.parametrize("changes", [
    {"knobs": ["temperature:0.5,1.5"]},
    {"knobs": ["temperature:0.5,1", "top_p:0.9,1"]},
    {"knobs": ["top_p:0.5,1"]},
    {"level": "every:2"},
    {"level": "sequence"},
    {"level": "delimiter:."},
])  # fmt: skip
def test_the_space_and_the_level(unchanged, changes):
    assert make(**changes) != unchanged


class Lift(ScalingKnob):
    name: ClassVar[str] = "lift"
    neutral: ClassVar[float] = 0.0
    options: tuple[float, ...] = (0.0, 0.5)
    weight: float = 2.0

    def temperature(self, value_N: torch.Tensor) -> torch.Tensor:
        return 1 + self.weight * value_N


def test_the_order_of_knobs_and_their_own_settings(monkeypatch):
    pair = ["temperature:0.5,1", "top_p:0.9,1"]
    assert make(knobs=pair) != make(knobs=pair, order=("top_p", "temperature"))
    monkeypatch.setattr(registry, "_registered", {})
    registry.register(Lift)
    assert make(knobs=[Lift(weight=2.0)]) != make(knobs=[Lift(weight=2.5)])


class Thing:
    def __init__(self, held):
        self.held = held


LONG = np.arange(5000)
PROMPT = Prompt("a b", (1, 2), {"answer": LONG, "thing": Thing([LONG]), "n": 1}, ({"role": "user", "content": "a"},))


def with_column(name, value):
    return Prompt(PROMPT.text, PROMPT.ids, {**PROMPT.columns, name: value}, PROMPT.messages)


def test_prompts_by_what_the_model_and_the_reward_read():
    shorter = np.delete(LONG, 2500)
    swapped = LONG.copy()
    swapped[2500] = 7
    unchanged = reward_input([PROMPT])
    assert unchanged == reward_input([copy.deepcopy(PROMPT)])
    for prompt in (
        with_column("answer", swapped), with_column("answer", shorter), with_column("thing", Thing([swapped])),
        with_column("n", True), with_column("m", None), Prompt("a c", PROMPT.ids, PROMPT.columns, PROMPT.messages),
        Prompt(PROMPT.text, PROMPT.ids, PROMPT.columns, ({"role": "system", "content": "a"},)),
    ):  # fmt: skip
        assert reward_input([prompt]) != unchanged
        assert (model_input([prompt]) == model_input([PROMPT])) == (prompt.text == PROMPT.text)
    assert model_input([PROMPT, PROMPT]) != model_input([PROMPT])
    assert model_input([Prompt(PROMPT.text, (1, 3), PROMPT.columns, PROMPT.messages)]) != model_input([PROMPT])


def scaled(model):
    model.model.layers[1].self_attn.scaling *= 2


def blunted(model):
    model.model.norm.variance_epsilon = 0.1


def rectified(model):
    model.model.layers[0].mlp.act_fn = torch.nn.ReLU()


@pytest.mark.parametrize("change", [scaled, blunted, rectified])
def test_parts_changed_after_they_were_made_from_the_config(unchanged, change):
    model = llama()
    change(model)
    assert make(model) != unchanged


def test_whether_parts_train_is_not_in_it_because_the_model_is_read_in_evaluation_mode(unchanged):
    assert make(llama().train()) == make(llama().eval()) == unchanged


def test_special_tokens_that_are_split(unchanged):
    tokenizer = testbed.load_tokenizer()
    tokenizer.split_special_tokens = True
    assert make(tokenizer=tokenizer) != unchanged


def doubled(module, args, output):
    output.logits = 2 * output.logits
    return output


def times(factor):
    return lambda module, args, output: setattr(output, "logits", factor * output.logits)


def test_what_a_caller_puts_around_the_model(unchanged):
    found = [unchanged]
    for hook in (doubled, times(2.0), times(3.0), times(torch.ones(1))):
        model = llama()
        handle = model.register_forward_hook(hook)
        assert make(model) == make(model)
        found.append(make(model))
        handle.remove()
        assert make(model) == unchanged
    model = llama()
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] / 2,))
    found.append(make(model))
    model = llama()
    own = model.lm_head.forward
    model.lm_head.forward = lambda hidden: own(hidden) * 3
    found.append(make(model))
    assert len(set(found)) == len(found)
