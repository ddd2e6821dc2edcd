"""`generate` in torch's inference mode: only where nobody can tell, and nothing that comes out of it is lost for autograd."""

import functools
from typing import Any, ClassVar

import pytest
import torch
from decoding_oracle import LEVELS, left_padded, policy_for
from latentknobs_temperature import Temperature
from test_modes_families import FAMILIES, model_of
from tiny_models import tiny_lm
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from latentknobs import KnobSpace
from latentknobs.engines.transformers import Attached, inference
from latentknobs.engines.transformers.leaving import sample_leaving
from latentknobs.engines.transformers.ledger import Ledger
from latentknobs.heads.segmenters import Every

TOLD = {"max_new_tokens": 6, "min_new_tokens": None}


class _Processor(LogitsProcessor):
    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen += [input_ids, scores]
        return scores


class _Criterion(StoppingCriteria):
    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.seen.append(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool)


class _Streamer(BaseStreamer):
    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def put(self, value: Tensor) -> None:
        self.seen.append(value)

    def end(self) -> None:
        pass


MODES: list[bool] = []  # of each step


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Ledger.remember

    def remember(self: Ledger, column: int, option_B: Tensor) -> None:
        MODES.append(torch.is_inference_mode_enabled())
        original(self, column, option_B)

    monkeypatch.setattr(Ledger, "remember", remember)


def ran_in_inference_mode(knobs: Attached) -> bool:
    """Whether the newest call did; what it has kept is ordinary in either case."""
    kept = [value for owner in (knobs._ledger, knobs._stepper) for value in vars(owner).values() if isinstance(value, Tensor)]
    for module in knobs.model.modules():
        kept += [value for value in (*vars(module).values(), *module.buffers()) if isinstance(value, Tensor)]
    assert kept and not any(value.is_inference() for value in kept)
    return MODES[-1]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("settings", [{}, {"num_return_sequences": 2}, {"num_beams": 2}, {"use_cache": False}])
def test_the_same_tokens_and_options_as_without_it(
    lm: nn.Module, level: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generated() -> tuple[Tensor, Tensor | None, bool]:
        torch.manual_seed(0)
        with Attached(lm, policy_for(lm, level, "sample"), seed=1) as knobs:
            sequences = lm.generate(**left_padded(), **TOLD, **settings)
            return sequences, None if "num_beams" in settings else knobs.option_BT, ran_in_inference_mode(knobs)

    quick = generated()
    monkeypatch.setattr("latentknobs.engines.transformers.attach.goes_unseen", lambda *_: False)
    plain = generated()
    assert (quick[2], plain[2]) == (True, False)
    assert torch.equal(quick[0], plain[0]) and (quick[1] is None or torch.equal(quick[1], plain[1]))


def test_what_comes_back_is_of_use_to_autograd(lm: nn.Module) -> None:
    policy = policy_for(lm, "token", "sample")
    with Attached(lm, policy) as knobs:
        sequences, option_BT = lm.generate(**left_padded(), **TOLD), knobs.option_BT
        assert ran_in_inference_mode(knobs)
    table_VD = torch.randn(lm.config.vocab_size, 3, requires_grad=True)
    nn.functional.embedding(sequences, table_VD).sum().backward()
    pi_BTK = torch.randn(*option_BT.shape, policy.space.K, requires_grad=True)
    pi_BTK.gather(-1, option_BT.unsqueeze(-1)).sum().backward()
    with torch.no_grad():
        sequences[:, 0] = option_BT[:, 0] = 0


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2", "dynamic rope"])
def test_the_model_and_the_policy_can_be_trained_after_it(family: str) -> None:
    scaled = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "max_position_embeddings": 8}
    model: Any = tiny_lm("llama") if family == "dynamic rope" else model_of(family)
    if family == "dynamic rope":  # its frequencies are made anew when a text grows beyond what the model was trained on
        model = type(model)(type(model.config)(**(model.config.to_dict() | scaled))).eval()
    policy = policy_for(model, "token", "sample")
    prompt_BP = torch.tensor([[5, 9, 7], [11, 3, 17]])
    with Attached(model, policy) as knobs:
        model.generate(prompt_BP, max_new_tokens=12, min_new_tokens=None)
        assert ran_in_inference_mode(knobs)
        sample_leaving(knobs, prompt_BP, torch.ones_like(prompt_BP), max_new_tokens=12, pad=0)
        assert ran_in_inference_mode(knobs)
    text_BL = prompt_BP.repeat(1, 6)
    model.train()
    model(text_BL, labels=text_BL).loss.backward()
    policy.head(torch.randn(4, policy.head.in_features)).sum().backward()
    assert all(weight.grad is not None for weight in (*model.parameters(), *policy.head.parameters()) if weight.requires_grad)


def test_rollouts_run_in_it_and_hand_out_ordinary_tensors(lm: nn.Module) -> None:
    inputs = left_padded()
    with Attached(lm, policy_for(lm, "token", "sample")) as knobs:
        made = sample_leaving(knobs, inputs["input_ids"], inputs["attention_mask"], max_new_tokens=12, pad=0)
        assert ran_in_inference_mode(knobs)
    assert not any(part.is_inference() for part in made)


@pytest.mark.parametrize(
    "argument", ["logits_processor", "stopping_criteria", "streamer", "past_key_values", "prefix_allowed_tokens_fn"]
)
def test_not_where_an_object_of_the_caller_sees_tensors(lm: nn.Module, argument: str) -> None:
    ids_BP, seen, cache = torch.tensor([[5, 9, 7]]), [], DynamicCache(config=lm.config)

    def allowed(row: int, ids_L: Tensor) -> list[int]:
        seen.append(ids_L)
        return list(range(lm.config.vocab_size))

    given = {
        "logits_processor": LogitsProcessorList([_Processor(seen)]), "stopping_criteria": [_Criterion(seen)],
        "streamer": _Streamer(seen), "past_key_values": cache, "prefix_allowed_tokens_fn": allowed,
    }  # fmt: skip
    with Attached(lm, policy_for(lm, "token", "sample")):
        lm.generate(ids_BP, attention_mask=torch.ones_like(ids_BP), **TOLD, **{argument: given[argument]})
    seen += [layer.keys for layer in cache.layers if layer.is_initialized]
    assert seen and not any(part.is_inference() for part in seen)


def test_not_where_more_than_ids_comes_back(lm: nn.Module) -> None:
    with Attached(lm, policy_for(lm, "token", "sample")):
        made = lm.generate(**left_padded(), **TOLD, return_dict_in_generate=True, output_scores=True, output_hidden_states=True)
    tensors = [made.sequences, *made.scores, *made.hidden_states[0], made.past_key_values.layers[0].keys]
    assert not any(part.is_inference() for part in tensors)
    with Attached(lm, policy_for(lm, "token", "sample")) as knobs:  # transformers has left hooks of its own by now
        lm.generate(**left_padded(), **TOLD)
        assert ran_in_inference_mode(knobs)


def test_not_where_a_hook_of_the_user_sees_hidden_states() -> None:
    model, seen = tiny_lm("llama"), []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    with Attached(model, policy_for(model, "token", "sample")) as knobs:
        model.generate(**left_padded(), **TOLD)
        inputs = left_padded()
        sample_leaving(knobs, inputs["input_ids"], inputs["attention_mask"], max_new_tokens=4, pad=0)
    probe = nn.Linear(seen[0].shape[-1], 1)
    probe(seen[0]).sum().backward()
    assert not any(part.is_inference() for part in seen)


class _Warmer(Temperature):
    """Another temperature, of which nobody knows what it keeps."""

    name: ClassVar[str] = "warmer"


class _Sentences(Every):
    pass


def _module(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.model.layers[0].mlp.act_fn = type("Somebodys", (nn.SiLU,), {"__module__": "somebody"})()


def _forward(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.model.layers[0].mlp.forward = model.model.layers[0].mlp.forward


def _weights(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = type("Packed", (nn.Parameter,), {})
    model.model.layers[0].mlp.up_proj.weight = packed(model.model.layers[0].mlp.up_proj.weight.detach())


def _buffers(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.model.register_buffer("table", type("Packed", (Tensor,), {})(torch.zeros(2)))


def _compiled(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.model.layers[0].mlp.compile()


def _attention(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "somebodys")


def _unnamed_hook(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.model.register_forward_pre_hook({}.setdefault)  # has no module


def _hook_of_all_modules(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = torch.nn.modules.module._global_forward_hooks
    monkeypatch.setitem(hooks, -1, lambda *_: None)


def _static_cache(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.generation_config.cache_implementation = "static"


def _watermark(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.generation_config.watermarking_config = object()


def _policy_class(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.__class__ = type("Somebodys", (type(policy),), {"__module__": "somebody"})


def _policy_method(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.choose = policy.choose


def _head(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.head.__class__ = type("Somebodys", (type(policy.head),), {"__module__": "somebody"})


def _rows(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.keeps_rows = True


def _knob(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.space = KnobSpace.of(_Warmer(options=(0.5, 1.0)))


def _segmenter(model: Any, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy.segmenter = _Sentences(2)


PARTS = [
    _module, _forward, _weights, _buffers, _compiled, _attention, _unnamed_hook, _hook_of_all_modules, _static_cache, _watermark,
    _policy_class, _policy_method, _head, _rows, _knob, _segmenter,
]  # fmt: skip


@pytest.mark.parametrize("change", PARTS, ids=lambda change: change.__name__)
def test_not_with_parts_of_which_it_is_not_known_what_they_keep(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm("llama")
    policy = policy_for(model, "token", "sample")
    assert inference.leaves_nothing(model, policy)
    change(model, policy, monkeypatch)
    assert not inference.leaves_nothing(model, policy)


def test_not_where_the_model_brings_its_own_generate() -> None:
    model = tiny_lm("llama")
    model.generate = functools.partial(model.generate, return_dict_in_generate=True)  # as transformers does for a repository's
    with Attached(model, policy_for(model, "token", "sample")):
        assert not isinstance(model.generate(**left_padded(), **TOLD), Tensor)
    assert not MODES[-1]


def test_a_cache_under_another_name_is_the_callers_too() -> None:
    mamba = model_of("mamba")
    cache, ids_BP = DynamicCache(config=mamba.config), torch.tensor([[5, 9, 7]])
    with Attached(mamba, policy_for(mamba, "token", "sample")):
        mamba.generate(ids_BP, cache_params=cache, **TOLD)
    assert not MODES[-1]


def test_a_call_of_the_model_itself_goes_on_after_a_generate(lm: nn.Module) -> None:
    cache, ids_BP = DynamicCache(config=lm.config), torch.tensor([[5, 9, 7]])
    with Attached(lm, policy_for(lm, "token", "sample")) as knobs, torch.no_grad():
        lm(ids_BP, past_key_values=cache)
        lm.generate(ids_BP, attention_mask=torch.ones_like(ids_BP), **TOLD)
        assert ran_in_inference_mode(knobs)
        lm(torch.tensor([[4]]), past_key_values=cache)


SETTINGS = [("return_dict_in_generate", True), ("cache_implementation", "static"), ("return_dict_in_generate", False)]


@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_what_a_config_leaves_out_is_read_from_that_of_the_model(name: str, value: Any) -> None:
    model = tiny_lm("llama")
    model.generation_config.update(**{name: value}, disable_compile=True)
    with Attached(model, policy_for(model, "token", "sample")) as knobs:
        made = model.generate(**left_padded(), generation_config=GenerationConfig(max_new_tokens=4, pad_token_id=0))
        assert ran_in_inference_mode(knobs) == (value is False)
    assert isinstance(made, Tensor) == (value is not True)


def test_a_static_cache_goes_its_old_way(lm: nn.Module) -> None:
    with Attached(lm, policy_for(lm, "token", "sample")) as knobs:
        lm.generate(**left_padded(), **TOLD, cache_implementation="static")
        assert not ran_in_inference_mode(knobs)
