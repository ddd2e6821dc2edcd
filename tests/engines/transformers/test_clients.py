"""Libraries that call `generate` or change the model in their own ways, while a policy is attached: it acts, or says why not."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_oracle import left_padded
from test_attach_manners import state_of
from tiny_models import STOPS, tiny_lm, word_tokenizer
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList, TextGenerationPipeline, TextIteratorStreamer

import latentknobs as lk
from latentknobs import testbed
from latentknobs.engines.transformers import Attached
from latentknobs.policies import ConstantPolicy

COLD = ConstantPolicy(lk.KnobSpace.of({"temperature": [0.0]}), 0)
WARM = ConstantPolicy(lk.KnobSpace.of({"temperature": [1.5]}), 0)
IDS = torch.tensor([[3, 5, 9, 7]])
TOKENS = 10


def greedy(model: Any) -> list[int]:
    return model.generate(input_ids=IDS, max_new_tokens=TOKENS, do_sample=False)[0].tolist()


def sampled(model: Any, **settings: Any) -> list[int]:
    return model.generate(input_ids=IDS, max_new_tokens=TOKENS, do_sample=True, **settings)[0].tolist()


def is_free(model: Any) -> bool:
    """Whether it samples for itself again."""
    torch.manual_seed(0)
    return len({tuple(sampled(model)) for _ in range(30)}) > 1


def as_grpo(model: Any, inputs: dict[str, Tensor], config: GenerationConfig) -> Tensor:
    """The call of TRL's GRPOTrainer."""
    with torch.no_grad():
        return model.generate(**inputs, generation_config=config, disable_compile=True)


def grpo_config(tokenizer: Any) -> GenerationConfig:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    return GenerationConfig(max_new_tokens=12, do_sample=True, temperature=0.9, top_p=0.95, top_k=20, min_p=0.1, **ids)


def with_trl(model: Any, inputs: dict[str, Tensor], config: GenerationConfig) -> Tensor:
    """The same inside TRL's own helper, as its trainer does it."""
    helpers = pytest.importorskip("trl.models.utils", reason="TRL is not installed: pip install 'latentknobs[clients]'")
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    with helpers.unwrap_model_for_generation(accelerator.prepare(model), accelerator) as unwrapped:
        return as_grpo(unwrapped, inputs, config)


@pytest.mark.parametrize("call", [as_grpo, with_trl])
def test_the_call_of_a_grpo_trainer(call: Callable[..., Tensor]) -> None:
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    prepare(model)  # marks it
    tokenizer.padding_side = "left"
    prompts = [row["prompt"] for row in testbed.prompts("mixture", "train", 4)]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    config = grpo_config(tokenizer)
    before, state = config.to_dict(), state_of(model)
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=config.pad_token_id)
    with Attached(model, COLD) as knobs:
        found = call(model, inputs, config)
        record = knobs.record(found, inputs["input_ids"].shape[1], inputs["attention_mask"])
    with Attached(model, WARM):
        warm = call(model, inputs, config)
    assert torch.equal(found, expected) and (record.logps_BT == 0).all()
    assert warm.shape != found.shape or not torch.equal(warm, found)
    assert config.to_dict() == before and state_of(model) == state


@pytest.mark.parametrize("policy", [COLD, WARM])
def test_a_whole_step_of_a_grpo_trainer(policy: ConstantPolicy, tmp_path: Path) -> None:
    """Its rollouts are the policy's, its gradients those of the model alone, and nothing is left behind."""
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'latentknobs[clients]'")
    from datasets import Dataset

    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    tokenizer.padding_side = "left"
    prompt, said = "Once upon a time", list[str]()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    greedy = tokenizer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)

    def reward(completions: list[str], **columns: Any) -> list[float]:
        said.extend(completions)
        return [float(len(text)) for text in completions]

    settings = trl.GRPOConfig(
        str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=8, max_steps=1, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", temperature=0.9, top_p=0.95, beta=0.0, learning_rate=1e-3,
    )  # fmt: skip
    for weight in model.parameters():
        weight.requires_grad_(True)
    before = [weight.detach().clone() for weight in model.parameters()]
    with Attached(model, policy):
        trl.GRPOTrainer(model, reward, args=settings, train_dataset=Dataset.from_list([{"prompt": prompt}] * 4),
                        processing_class=tokenizer).train()  # fmt: skip
    learned = any(not torch.equal(*both) for both in zip(before, model.parameters(), strict=True))
    if policy is COLD:  # four equal answers teach nothing
        assert said == [greedy] * 4 and not learned
    else:
        assert len(set(said)) > 1 and learned
    assert "generate" not in vars(model) and not hasattr(model, "_latentknobs")


def test_batches_returns_configs_and_chats_of_a_pipeline() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    pipe = TextGenerationPipeline(model=tiny_lm("llama"), tokenizer=tokenizer)
    prompts, chat = ["w3 w5 w9 w7", "w4", "w3 w5 w9"], [{"role": "user", "content": "w3 w5 w9 w7"}]
    config = GenerationConfig(max_new_tokens=TOKENS, do_sample=True, temperature=3.0, eos_token_id=STOPS, pad_token_id=0)
    before, answer = config.to_dict(), " ".join(f"w{n}" for n in greedy(pipe.model)[IDS.shape[1] :])
    with Attached(pipe, COLD):
        several = pipe(prompts, batch_size=2, num_return_sequences=3, max_new_tokens=TOKENS, return_full_text=False)
        assert [len({one["generated_text"] for one in row}) for row in several] == [1, 1, 1]
        found = pipe(prompts[0], generation_config=config, return_full_text=False)[0]["generated_text"]
        answered = pipe(chat, generation_config=config)[0]["generated_text"][-1]["content"]
    assert found == several[0][0]["generated_text"] == answered == answer
    assert config.to_dict() == before


def offload(model: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, execution_device="cpu")


def prepare(model: Any) -> None:
    from accelerate import Accelerator

    Accelerator(cpu=True).prepare(model)


def compile_forward(model: Any) -> None:
    model.forward = torch.compile(model.forward, backend="eager")


def compile_in_place(model: Any) -> None:
    model.compile(backend="eager")


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("change", [offload, prepare, compile_forward, compile_in_place])
def test_what_changes_forward_in_place(change: Callable[[Any], None], when: str) -> None:
    model = tiny_lm("llama")
    expected = greedy(model)
    if when == "before":
        change(model)
    state = state_of(model)
    with Attached(model, COLD):
        if when == "inside":
            change(model)
        assert sampled(model) == sampled(model) == expected
    assert is_free(model)
    assert when == "inside" or state_of(model) == state


def with_lora(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    wide = {"r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], **wide))
    tuned.add_adapter("second", peft.LoraConfig(target_modules=["q_proj", "v_proj"], **wide))
    return tuned


def test_an_adapter_that_is_switched_off_or_merged_during_the_attachment() -> None:
    torch.manual_seed(1)
    tuned = with_lora(tiny_lm("llama"))
    first = greedy(tuned)
    with tuned.disable_adapter():
        bare = greedy(tuned)
    tuned.set_adapter("second")
    second = greedy(tuned)
    assert len({tuple(ids) for ids in (bare, first, second)}) == 3
    with Attached(tuned, COLD):
        assert sampled(tuned) == second
        tuned.set_adapter("default")
        assert sampled(tuned) == first
        with tuned.disable_adapter():
            assert sampled(tuned) == bare
        merged = tuned.merge_and_unload()
        assert sampled(merged) == first
    assert is_free(merged)


def test_a_streamer_in_another_thread() -> None:
    model, tokenizer = tiny_lm("llama"), word_tokenizer()
    expected, returned = greedy(model), []
    with Attached(model, COLD) as knobs:
        for _ in range(2):
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
            thread = threading.Thread(target=lambda to=streamer: returned.append(sampled(model, streamer=to)))
            thread.start()
            words = "".join(streamer).split()
            thread.join()
            assert words == [f"w{n}" for n in expected[IDS.shape[1] :]] and returned[-1] == expected
        assert (knobs.value_BTJ == 0).all(), "what another thread generated is read in this one"
        assert (knobs.record(torch.tensor(returned[-1:]), IDS.shape[1]).logps_BT == 0).all()


@pytest.mark.parametrize("settings", [{"assistant_model": partial(tiny_lm, "llama", 1)}, {"prompt_lookup_num_tokens": 3}],
                         ids=["assistant", "prompt lookup"])  # fmt: skip
def test_drafts_leave_the_text_and_the_assistant_as_they_are(settings: dict[str, Any]) -> None:
    model, given = tiny_lm("llama"), {name: one() if callable(one) else one for name, one in settings.items()}
    expected, watched = greedy(model), [model, *(one for one in given.values() if isinstance(one, torch.nn.Module))]
    before = [state_of(one) for one in watched]
    with Attached(model, COLD) as knobs:
        assert sampled(model, **given) == expected
        assert (knobs.record(torch.tensor([expected]), IDS.shape[1]).logps_BT == 0).all()
    assert [state_of(one) for one in watched] == before


def test_transition_scores_are_the_log_probabilities_of_the_record() -> None:
    model, inputs = tiny_lm("llama"), left_padded()
    with Attached(model, WARM) as knobs:
        torch.manual_seed(0)
        out = model.generate(**inputs, max_new_tokens=TOKENS, return_dict_in_generate=True, output_scores=True)
        scores_BT = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        record = knobs.record(out.sequences, inputs["input_ids"].shape[1], inputs["attention_mask"])
    assert torch.allclose(scores_BT[record.mask_BT], record.logps_BT[record.mask_BT], atol=1e-4)


def test_two_models_with_a_policy_each() -> None:
    outer, inner = tiny_lm("llama"), tiny_lm("llama", 1)
    states, first, second = [state_of(one) for one in (outer, inner)], greedy(outer), greedy(inner)
    with Attached(outer, COLD):
        with Attached(inner, WARM, seed=4):
            warm = sampled(inner)
            assert sampled(outer) == first and sampled(inner) == warm != second
            assert sampled(outer, assistant_model=inner) == first
        assert sampled(outer) == first and is_free(inner)
    assert [state_of(one) for one in (outer, inner)] == states


class Stopped(Exception):
    pass


class BadStreamer:
    """Ends at the third token."""

    tokens = 0

    def put(self, ids: Tensor) -> None:
        self.tokens += 1
        if self.tokens == 4:  # the prompt comes first
            raise Stopped

    def end(self) -> None:
        pass


def stop_after_three(ids_BL: Tensor, scores: Any, **kwargs: Any) -> Tensor:
    if ids_BL.shape[1] >= IDS.shape[1] + 3:
        raise Stopped
    return torch.zeros(len(ids_BL), dtype=torch.bool)


def forbid_after_three(ids_BL: Tensor, scores_BV: Tensor) -> Tensor:
    if ids_BL.shape[1] >= IDS.shape[1] + 3:
        raise Stopped
    return scores_BV


@pytest.mark.parametrize(
    "settings",
    [
        lambda: {"streamer": BadStreamer()},
        lambda: {"stopping_criteria": StoppingCriteriaList([stop_after_three])},
        lambda: {"logits_processor": [forbid_after_three]},
        lambda: {"assistant_model": tiny_lm("llama", 1), "stopping_criteria": [stop_after_three]},
    ],
    ids=["streamer", "criterion", "processor", "with drafts"],
)
def test_a_call_that_breaks_leaves_nothing_behind(settings: Callable[[], dict[str, Any]]) -> None:
    model = tiny_lm("llama")
    expected, state = greedy(model), state_of(model)
    with Attached(model, COLD) as knobs:
        inside, config, rng = state_of(model), model.generation_config, torch.get_rng_state()
        with torch.no_grad():
            logits_BLV = model(IDS).logits
        for _ in range(2):
            with pytest.raises(Stopped):
                sampled(model, **settings())
            assert model.generation_config is config and state_of(model) == inside and torch.is_grad_enabled()
            with torch.no_grad():
                assert torch.equal(model(IDS).logits, logits_BLV)
            torch.set_rng_state(rng)
            assert sampled(model) == expected and torch.equal(torch.get_rng_state(), rng)
            assert (knobs.record(torch.tensor([expected]), IDS.shape[1]).logps_BT == 0).all()
    assert state_of(model) == state
