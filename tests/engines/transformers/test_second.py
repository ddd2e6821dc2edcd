"""Second logits: what guidance compares with, in every mode of `generate`, against one plain forward pass per token."""

from typing import Any

import pytest
import torch
from decoding_oracle import LEVELS, PROMPTS, SEED, left_padded, policy_for, responses_of, seen, steps
from test_modes import MODES, assert_reproduced, beam_scores, generated
from test_modes_families import model_of
from tiny_models import STOPS, VOCAB, tiny_lm
from torch import nn
from transformers import CompileConfig, DynamicCache, GenerationConfig

import latentknobs as lk
from latentknobs.engines.transformers import Attached, TransformersEngine
from latentknobs.engines.transformers.second import SecondReader
from latentknobs.errors import DecodingError
from latentknobs.heads.segmenters import Every
from latentknobs.policies import ConstantPolicy, GreedyPolicy, UniformPolicy

SPACE = lk.KnobSpace.of({"temperature": [0.6, 1.5]}, {"guidance_scale": [1.0, 1.7, 3.0]})
TOKENS = 9
RESPONSES = [[7, 3, 4, 8], [5], [9, 9, 6]]


class Forwards:
    """Counts the forward passes of a model, and the tokens that each reads."""

    def __init__(self, model: nn.Module) -> None:
        self.widths: list[int] = []
        self.hook = model.register_forward_pre_hook(lambda module, args, kwargs: self.note(args, kwargs), with_kwargs=True)

    def note(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.widths.append((args[0] if args else kwargs["input_ids"]).shape[1])

    def __enter__(self) -> "Forwards":
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_finished_responses_are_read_again_without_their_prompts(lms: dict[str, nn.Module], family: str) -> None:
    contexts = list(TransformersEngine(lms[family], None).observe(PROMPTS, RESPONSES, ("second_NV",)))
    for prompt, response, context in zip(PROMPTS, RESPONSES, contexts, strict=True):
        for t in range(len(response)):
            second_V = seen(lms[family], prompt, response[:t]).second_NV[0]
            assert torch.allclose(context.second_NV[t], second_V, atol=1e-5)


def test_only_spaces_that_need_second_logits_pay_for_them(lm: nn.Module) -> None:
    with Forwards(lm) as forwards:
        plain = TransformersEngine(lm, None).observe(PROMPTS, RESPONSES)
        assert [set(one.parts) for one in plain] == [{"hidden_ND", "logits_NV"}] * 3
        (context, *_) = TransformersEngine(lm, None).observe(PROMPTS, RESPONSES, ("previous_NL",))
        assert "second_NV" not in context.parts and len(forwards.widths) == 6, "prompts, responses, and one row alone"
        forwards.widths.clear()
        generated(lm, UniformPolicy(lk.KnobSpace.of("temperature", "repetition_penalty"), Every(1)), max_new_tokens=3)
        assert forwards.widths == [5, 1, 1]
        generated(lm, GreedyPolicy(), max_new_tokens=3)
        assert forwards.widths == [5, 1, 1] * 2, "a policy of its own kind reads logits alone"
        generated(lm, UniformPolicy(SPACE, Every(1)), max_new_tokens=3, eos_token_id=VOCAB)
        assert forwards.widths[6:] == [5, 1, 1, 1, 1, 1], "each token is read once more, by all rows together"


def test_second_logits_are_at_least_float32(lm: nn.Module) -> None:
    model = tiny_lm("llama").to(torch.bfloat16)
    (context, *_) = TransformersEngine(model, None).observe(PROMPTS, RESPONSES, ("second_NV",))
    assert context.second_NV.dtype == torch.float32
    (context, *_) = TransformersEngine(model.double(), None).observe(PROMPTS, RESPONSES, ("second_NV",))
    assert context.second_NV.dtype == torch.float64


def test_a_reader_begins_anew_where_tokens_have_changed(lm: nn.Module) -> None:
    """Three tokens are drafted, two of them rejected and written otherwise."""
    drafted, written = torch.tensor([[7, 3, 4, 8]]), torch.tensor([[7, 3, 6, 5, 9]])
    reader = SecondReader(lm)
    with torch.no_grad(), Forwards(lm) as forwards:
        reader.logits(drafted, known=0, last=4)
        found_BSV = reader.logits(written, known=2, last=3)
        assert torch.allclose(found_BSV, lm(written).logits[:, 2:], atol=1e-5)
        reader.logits(torch.cat([written, written[:, :1]], 1), known=5, last=1)
    assert forwards.widths == [4, 5, 5, 1]


# in `generate`

DRAFTS = {"prompt lookup": {"prompt_lookup_num_tokens": 3}, "assistant": {"assistant_model": tiny_lm("llama", seed=1)}}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_plain_sampling_draws_the_tokens_of_its_seed(lm: nn.Module, mode: str, level: str) -> None:
    policy = policy_for(lm, level, "sample", SPACE)
    assert_reproduced(lm, policy, *generated(lm, policy, **MODES[mode]))


@pytest.mark.parametrize("mode", [*MODES, *DRAFTS])
def test_guided_logits_equal_the_slow_ones_at_every_token(lm: nn.Module, mode: str) -> None:
    """The logits that `generate` returns, for rows with padding on the left where the mode takes several rows."""
    policy, prompts = UniformPolicy(SPACE, Every(1)), PROMPTS if mode in MODES else [[5, 9, 7, 5, 9]]
    inputs, asked = left_padded(prompts), {"max_new_tokens": TOKENS, "eos_token_id": VOCAB} | (MODES | DRAFTS)[mode]
    torch.manual_seed(0)
    with Attached(lm, policy, seed=SEED) as knobs:
        out = lm.generate(**inputs, **asked, return_dict_in_generate=True, output_logits=True)
        option_BT = knobs.option_BT
    responses = out.sequences[:, 5:].tolist()
    for b, response in enumerate(responses):
        for t, step in enumerate(steps(lm, policy, b, prompts[b * len(prompts) // len(responses)], response)):
            assert torch.allclose(out.logits[t][b].log_softmax(-1), step.logp_V, atol=2e-5)
            assert option_BT[b, t] == step.option
    assert len(set(option_BT.flatten().tolist())) > 2, "few options would hardly tell guidance from none"


def test_records_are_guided(lm: nn.Module) -> None:
    policy, inputs = policy_for(lm, "every:3", "sample", SPACE), left_padded()
    with Attached(lm, policy, seed=SEED) as knobs:
        out_BL = lm.generate(**inputs, max_new_tokens=TOKENS)
        record = knobs.record(out_BL, 5, inputs["attention_mask"])
    for b, response in enumerate(responses_of(out_BL, 5)):
        for t, step in enumerate(steps(lm, policy, b, PROMPTS[b], response)):
            assert record.option_BT[b, t] == step.option
            assert torch.allclose(record.logps_BT[b, t], step.logp_V[response[t]], atol=2e-5)
    assert torch.allclose(record.log_kept_BT, torch.tensor(0.0), atol=1e-5), "guidance removes nothing"


@pytest.mark.parametrize("do_sample", [False, True], ids=["beam", "beam-sample"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_beams_carry_their_second_reading(lm: nn.Module, use_cache: bool, do_sample: bool) -> None:
    policy, inputs = policy_for(lm, "token", "sample", SPACE), left_padded()
    torch.manual_seed(0)
    with Attached(lm, policy, seed=SEED):
        out = lm.generate(
            **inputs, max_new_tokens=5, num_beams=4, num_return_sequences=2, do_sample=do_sample, length_penalty=0.0,
            use_cache=use_cache, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    for b, response in enumerate(responses_of(out.sequences, 5)):
        expected = beam_scores(lm, policy, b // 2, PROMPTS[b // 2], response)
        assert out.sequences_scores[b].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "mamba"])
def test_other_families(family: str) -> None:
    """Sliding windows, learned positions, and a state instead of a cache."""
    model = model_of(family)
    policy, prompts = policy_for(model, "token", "sample", SPACE), [[5, 9, 7], [11, 3, 17]] if family == "mamba" else PROMPTS
    found = generated(model, policy, inputs=left_padded(prompts), max_new_tokens=14)
    assert_reproduced(model, policy, *found, prompts=prompts)


def _only_the_best(ids_BL: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
    return torch.where(scores_BV == scores_BV.amax(-1, keepdim=True), scores_BV, -torch.inf)


def test_guidance_is_that_of_transformers_with_left_padding() -> None:
    """The tokens and scores of `generate(guidance_scale=...)` itself, which rounds the first logits to float32."""
    model, inputs = tiny_lm("llama").double(), left_padded()
    asked = {"max_new_tokens": TOKENS, "return_dict_in_generate": True}
    theirs = model.generate(**inputs, **asked, do_sample=False, guidance_scale=1.7, output_scores=True)
    with Attached(model, ConstantPolicy(lk.KnobSpace.of({"guidance_scale": [1.7]}), 0)):
        ours = model.generate(**inputs, **asked, output_logits=True, logits_processor=[_only_the_best])
    assert torch.equal(ours.sequences, theirs.sequences)
    for logits_BV, scores_BV in zip(ours.logits, theirs.scores, strict=True):
        assert torch.allclose(logits_BV.double(), scores_BV, atol=1e-5)


def test_the_second_cache_goes_with_the_call(lm: nn.Module) -> None:
    with Attached(lm, UniformPolicy(SPACE, Every(1))) as knobs:
        lm.generate(**left_padded(), max_new_tokens=3)
        assert knobs._newest is not None and knobs._newest.second is None
        lm.generate(**left_padded(), max_new_tokens=3)  # and the next call begins anew
        assert knobs.record(torch.tensor([[5, 9, 7, 3]]), 3).logps_BT.isfinite().all()


@torch.no_grad()
def test_a_loop_of_forward_calls_is_guided_too(lm: nn.Module) -> None:
    policy, prompt, response = policy_for(lm, "token", "greedy", SPACE), PROMPTS[0], [4, 9, 6]
    expected = steps(lm, policy, 0, prompt, response)
    with Attached(lm, policy):
        output = lm(torch.tensor([prompt]))
        for token, step in zip(response, expected, strict=True):
            assert torch.allclose(output.logits[0, -1].log_softmax(-1), step.logp_V, atol=2e-5)
            output = lm(torch.tensor([[token]]), past_key_values=output.past_key_values)


@pytest.mark.parametrize("knob", ["guidance_scale:2", "repetition_penalty:50"])
def test_a_prompt_that_a_cache_holds_already_is_known_all_the_same(lm: nn.Module, knob: str) -> None:
    policy, inputs = ConstantPolicy(lk.KnobSpace.of(knob), 0), left_padded(PROMPTS[2:])
    cache = DynamicCache(config=lm.config)
    with torch.no_grad():
        lm(inputs["input_ids"][:, :4], past_key_values=cache)
    fresh, _ = generated(lm, policy, inputs=inputs)
    assert generated(lm, policy, inputs=inputs, past_key_values=cache)[0] == fresh


@pytest.mark.slow
def test_compiled_forward(lm: nn.Module) -> None:
    policy, compiled = policy_for(lm, "every:3", "sample", SPACE), CompileConfig(backend="eager", mode="default")
    compiled._compile_all_devices = True
    assert_reproduced(lm, policy, *generated(lm, policy, cache_implementation="static", compile_config=compiled))


# refusals


def test_embedded_prompts_are_refused_by_the_knobs_that_need_their_last_token(lm: nn.Module) -> None:
    embeds = lm.get_input_embeddings()(torch.tensor([[3, 4]]))
    message = r"inputs_embeds hides the token ids of the prompt, and guidance_scale compares .* Pass input_ids"
    with Attached(lm, UniformPolicy(SPACE, Every(1))), pytest.raises(DecodingError, match=message):
        lm.generate(inputs_embeds=embeds, max_new_tokens=2)
    with Attached(lm, UniformPolicy(SPACE, Every(1))), pytest.raises(DecodingError, match=message):
        lm(inputs_embeds=embeds)
    with Attached(lm, GreedyPolicy()):
        assert lm.generate(inputs_embeds=embeds, max_new_tokens=2).shape[1] == 2


@pytest.mark.parametrize(("knob", "part"), [("guidance_scale", "second_NV"), ("repetition_penalty", "previous_NL")])
def test_continuous_batching_is_refused_before_it_begins(lm: nn.Module, knob: str, part: str) -> None:
    policy = ConstantPolicy(lk.KnobSpace.of({knob: [1.5]}), 0)
    with (
        Attached(lm, policy),
        pytest.raises(DecodingError, match=f"generate_batch.* cannot supply {part}, .*leave that knob out"),
    ):
        lm.generate_batch([[3, 4]], generation_config=GenerationConfig(max_new_tokens=2))


def test_guidance_of_generate_itself_is_refused_beside_a_policy(lm: nn.Module) -> None:
    prompt = torch.tensor([[3, 4]])
    message = r"generate\(guidance_scale=1\.5\) would act on top of the attached policy"
    with Attached(lm, UniformPolicy(SPACE, Every(1))), pytest.raises(DecodingError, match=message):
        lm.generate(prompt, guidance_scale=1.5)


def test_guidance_in_a_generation_config_is_neutralised(lm: nn.Module) -> None:
    policy, config = policy_for(lm, "token", "sample"), GenerationConfig(max_new_tokens=TOKENS, eos_token_id=STOPS)
    plain = generated(lm, policy, generation_config=config)
    config.guidance_scale = 3.0
    guided = generated(lm, policy, generation_config=config)
    assert guided[0] == plain[0]


def test_second_logits_that_nobody_supplied_are_named(lm: nn.Module) -> None:
    policy, logits_NV = ConstantPolicy(lk.KnobSpace.of({"guidance_scale": [1.5]}), 0), torch.zeros(1, 4)
    calls: list[Any] = [
        lambda: lk.option_logps(logits_NV, torch.tensor([0]), policy.space),
        lambda: lk.apply_options(logits_NV, policy.space, torch.tensor([0]), lk.Context(position_N=torch.tensor([0]))),
    ]
    for call in calls:
        with pytest.raises(DecodingError, match="The knob 'guidance_scale' reads second_NV, which was not supplied"):
            call()
