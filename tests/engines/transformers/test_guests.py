"""The caller's world: wrappers, threads, copies, pickles and the caller's own `generate`."""

import copy
import io
import pickle
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_oracle import left_padded, policy_for
from tiny_models import tiny_lm, word_tokenizer
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

import latentknobs as lk
from latentknobs.adapter import describe_model
from latentknobs.engines.transformers import Attached
from latentknobs.errors import AdapterError, DecodingError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every
from latentknobs.policies import ConstantPolicy

COLD = ConstantPolicy(lk.KnobSpace.of({"temperature": [0.0]}), 0)
IDS = torch.tensor([[3, 5, 9, 7]])


def texts(model: Any, times: int = 4, **inputs: Any) -> set[tuple[int, ...]]:
    """The different responses of some calls: one where the policy is greedy."""
    asked = inputs or {"input_ids": IDS}
    return {tuple(model.generate(**asked, max_new_tokens=10, do_sample=True)[0].tolist()) for _ in range(times)}


def greedy(model: nn.Module) -> tuple[int, ...]:
    return tuple(model.generate(input_ids=IDS, max_new_tokens=10, do_sample=False)[0].tolist())


def with_lora(model: nn.Module) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


WRAPPERS = {"PEFT": with_lora, "torch.compile": partial(torch.compile, backend="eager"), "bare": lambda model: model}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_decode_with_the_policy(kind: str) -> None:
    model = tiny_lm("llama")
    expected, wrapper = greedy(model), WRAPPERS[kind](model)
    with Attached(wrapper, COLD) as knobs:
        assert texts(wrapper) == {expected}
        assert knobs.record(torch.tensor([expected]), IDS.shape[1]).logps_BT.sum() == 0
    assert len(texts(wrapper)) > 1


def test_a_loop_of_forward_calls_on_a_wrapper_is_decoded_once() -> None:
    """PEFT calls the model's forward without its hooks."""
    policy, model = ConstantPolicy(lk.KnobSpace.of({"temperature": [0.5]}), 0), tiny_lm("llama")
    with torch.no_grad():
        plain_BV, wrapper = model(IDS).logits[:, -1], with_lora(model)
        with Attached(wrapper, policy):
            assert torch.allclose(wrapper(IDS).logits[:, -1], 2 * plain_BV, atol=1e-5)
            assert torch.allclose(wrapper.get_base_model()(IDS).logits[:, -1], 2 * plain_BV, atol=1e-5)


def test_pipelines_decode_with_the_policy() -> None:
    from transformers import TextGenerationPipeline

    pipe = TextGenerationPipeline(model=tiny_lm("llama"), tokenizer=word_tokenizer())
    with Attached(pipe, COLD):
        assert len({pipe("w3 w5 w9 w7", max_new_tokens=10)[0]["generated_text"] for _ in range(4)}) == 1


@pytest.fixture
def one_process() -> Iterator[None]:
    """A group of one process, as each process of a larger one sees it."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["DDP", "FSDP"])
def test_distributed_wrappers_decode_with_the_policy(kind: str, one_process: None) -> None:
    model = tiny_lm("llama").requires_grad_(True)
    expected = greedy(model)
    wrapper = nn.parallel.DistributedDataParallel(model) if kind == "DDP" else FullyShardedDataParallel(model, device_id="cpu")
    whole = nullcontext() if kind == "DDP" else FullyShardedDataParallel.summon_full_params(wrapper)
    with whole, Attached(wrapper, COLD):
        assert texts(wrapper.module) == {expected}
        assert wrapper(IDS).logits[0, -1].argmax() == expected[IDS.shape[1]]


def test_data_parallel_wrappers_are_opened() -> None:
    model = nn.DataParallel(tiny_lm("llama"), device_ids=[])
    with Attached(model, COLD) as knobs:
        assert knobs.model is model.module and len(texts(model.module)) == 1


def test_what_cannot_be_decoded_is_refused_by_name() -> None:
    from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM

    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 16))}
    bart = BartForConditionalGeneration(BartConfig(**sides, vocab_size=24, d_model=16))
    with pytest.raises(DecodingError, match="BartForConditionalGeneration is an encoder-decoder model"):
        Attached(bart, COLD)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 24}
    with pytest.raises((AdapterError, DecodingError), match="BertForMaskedLM"):
        Attached(BertForMaskedLM(BertConfig(**shape)), COLD)
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(tiny_lm("llama"), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(DecodingError, match="learned embeddings in front of the prompt"):
        Attached(tuned, COLD)


def test_threads_wait_for_each_other() -> None:
    model, inputs = tiny_lm("llama"), [left_padded(), {"input_ids": torch.tensor([[3, 4, 8, 11, 10], [5, 6, 7, 8, 9]])}]
    found: list[bool] = []
    with Attached(model, policy_for(model, "every:3", "sample")):
        expected = [model.generate(**one, max_new_tokens=20) for one in inputs]

        def work(one: dict[str, Tensor], wanted: Tensor) -> None:
            found.extend(torch.equal(model.generate(**one, max_new_tokens=20), wanted) for _ in range(4))

        threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 8


def through_pickle(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save], ids=lambda copied: copied.__name__)
def test_copies_are_the_model_as_if_nothing_were_attached(copied: Any) -> None:
    model = tiny_lm("llama")
    expected = greedy(model)
    with Attached(model, ConstantPolicy(lk.KnobSpace.of({"temperature": [1.5]}), 0)):
        clone = copied(model)
        assert len(texts(model)) == 1, "one seed"
        assert getattr(clone, "_latentknobs", None) is None
        assert greedy(clone) == expected
        with torch.no_grad():
            plain = clone(IDS).logits
        with Attached(clone, COLD):
            assert texts(clone) == {expected}
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain)
    assert clone.generate.__self__ is clone


def test_saving_an_attached_model_saves_the_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_lm("llama")
    model.generation_config.top_k = 7
    expected, model.generation_config.do_sample = greedy(model), True
    with Attached(model, ConstantPolicy(lk.KnobSpace.of({"temperature": [1.5]}), 0)):
        model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert greedy(loaded) == expected and loaded.generation_config.top_k == 7


def test_the_callers_own_generate_is_called_and_stays(lm: nn.Module) -> None:
    original, calls = lm.generate, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return original(*args, **kwargs)

    lm.generate = timed
    try:
        with Attached(lm, COLD):
            assert len(texts(lm)) == 1 and len(calls) == 4
        assert lm.generate is timed
    finally:
        del lm.generate


def test_a_wrapper_that_is_put_on_inside_the_block_still_works_after_it(lm: nn.Module) -> None:
    with Attached(lm, COLD):
        inner = lm.generate
        lm.generate = lambda *args, **kwargs: inner(*args, **kwargs)
    try:
        assert len(texts(lm)) > 1
    finally:
        del lm.generate


def test_settings_that_are_changed_inside_the_block_stay_and_do_not_act(lm: nn.Module) -> None:
    before = lm.generation_config.top_k
    try:
        with Attached(lm, ConstantPolicy(lk.KnobSpace.of({"temperature": [1.5]}), 0), sampler="transformers"):
            lm.generation_config.top_k = 1
            torch.manual_seed(0)
            assert len({tuple(lm.generate(IDS, max_new_tokens=10)[0].tolist()) for _ in range(4)}) > 1
        assert lm.generation_config.top_k == 1
    finally:
        lm.generation_config.top_k = before


def test_sampling_arguments_of_clients_can_be_overridden(lm: nn.Module) -> None:
    with Attached(lm, COLD), pytest.raises(DecodingError, match=r"generate\(do_sample=False\).*sampling_arguments='override'"):
        lm.generate(IDS, max_new_tokens=4, do_sample=False)
    expected = greedy(lm)
    with Attached(lm, COLD, sampling_arguments="override"), pytest.warns(UserWarning, match="do_sample, temperature.*ignored"):
        found = lm.generate(IDS, max_new_tokens=10, temperature=0.77, do_sample=False)
    assert tuple(found[0].tolist()) == expected


@pytest.mark.parametrize("kind", WRAPPERS)
def test_adapters_attach_to_wrappers_and_pass_on_what_becomes_of_arguments(kind: str) -> None:
    model = tiny_lm("llama")
    space, base = lk.KnobSpace.of({"temperature": [0.0, 1.5]}), describe_model(model)
    adapter = lk.KnobAdapter(space, OptionHead(space, base["hidden_size"], 4).eval(), Every(1), ("hidden",), base)
    wrapper = WRAPPERS[kind](model)
    with lk.attach(wrapper, adapter, sampling_arguments="override") as knobs:
        wrapper.generate(input_ids=IDS, max_new_tokens=4, temperature=0.7)
        assert knobs.option_BT.shape == (1, 4)
    with lk.attach(wrapper, adapter), pytest.raises(DecodingError, match="would act on top"):
        wrapper.generate(input_ids=IDS, max_new_tokens=4, temperature=0.7)


def test_a_call_inside_a_call_is_refused_and_leaves_a_working_attachment() -> None:
    model = tiny_lm("llama")
    expected = greedy(model)

    def asks_again(ids_BL: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        model.generate(input_ids=IDS, max_new_tokens=2)
        return torch.zeros(len(ids_BL), dtype=torch.bool)

    with Attached(model, COLD):
        with pytest.raises(DecodingError, match="while it was generating"):
            model.generate(input_ids=IDS, max_new_tokens=4, stopping_criteria=[asks_again])
        assert texts(model) == {expected}


def test_a_cache_that_training_drops_is_refused() -> None:
    model = tiny_lm("llama")
    expected = greedy(model)
    model.gradient_checkpointing_enable()
    model.train()
    with Attached(model, COLD):
        with pytest.raises(DecodingError, match="gradient checkpointing, which drops the key-value cache"):
            model.generate(input_ids=IDS, max_new_tokens=4)
        assert texts(model, input_ids=IDS, use_cache=False) == {expected}
