"""Every way of calling `generate` with a policy attached, against the slow oracle."""

from typing import Any

import pytest
import torch
from decoding_oracle import LEVELS, PROMPTS, SEED, left_padded, policy_for, responses_of, steps
from scipy import stats
from tiny_models import STOPS, VOCAB, tiny_lm
from torch import Tensor, nn
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig

from latentknobs import Context, KnobSpace, apply_options
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.errors import DecodingError
from latentknobs.heads.segmenters import Every
from latentknobs.policies import ConstantPolicy, Policy, UniformPolicy

TOKENS = 9
POISON = {"temperature": 0.6, "top_k": 50, "top_p": 0.9}


def generated(model: Any, policy: Policy, rows: Tensor | None = None, **settings: Any) -> tuple[list[list[int]], Tensor]:
    """Responses and the (B, T) options of the plain sampling mode."""
    inputs = settings.pop("inputs", None) or left_padded()
    with Attached(model, policy, seed=SEED) as knobs:
        knobs.rows = rows
        out_BL = model.generate(**inputs, **{"max_new_tokens": TOKENS, **settings})
        assert knobs._newest is not None and knobs._newest.sampling is False
        option_BT = knobs.option_BT
    return responses_of(out_BL, inputs["input_ids"].shape[1] if "input_ids" in inputs else 0), option_BT


def assert_reproduced(
    model: Any, policy: Any, responses: list[list[int]], option_BT: Tensor, prompts: Any = PROMPTS, keys: Any = None
) -> None:
    """The oracle, token by token with one row at a time, draws the same options and the same tokens."""
    copies = len(responses) // len(prompts)
    for b, response in enumerate(responses):
        key = b if keys is None else keys[b]
        expected = steps(model, policy, key, prompts[b // copies], response)
        assert option_BT[b, : len(response)].tolist() == [step.option for step in expected]
        for t, step in enumerate(expected):
            value_1J = policy.space.values_KJ()[[step.option]]
            keys_1 = torch.tensor([key]), torch.tensor([t])
            drawn_1 = sample_values(step.lm_logp_V.unsqueeze(0), policy.space, value_1J, SEED, *keys_1, step.context)
            assert drawn_1.item() == response[t]


MODES: dict[str, dict[str, Any]] = {
    "dynamic cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "chunked prefill": {"prefill_chunk_size": 2},
    "several samples": {"num_return_sequences": 3},
    "poisoned config": {
        "generation_config": GenerationConfig(**POISON, do_sample=False, max_new_tokens=TOKENS, eos_token_id=STOPS)
    },
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
def test_plain_sampling_draws_the_tokens_of_its_seed(lm: nn.Module, mode: str, level: str) -> None:
    policy = policy_for(lm, level, "sample")
    assert_reproduced(lm, policy, *generated(lm, policy, **MODES[mode]))


@pytest.mark.parametrize("level", LEVELS)
def test_embedded_prompts(lm: nn.Module, level: str) -> None:
    policy, inputs = policy_for(lm, level, "sample"), left_padded()
    embedded = {"inputs_embeds": lm.get_input_embeddings()(inputs["input_ids"]), "attention_mask": inputs["attention_mask"]}
    responses, option_BT = generated(lm, policy, inputs=embedded)
    assert (responses, option_BT.tolist()) == (lambda r, o: (r, o.tolist()))(*generated(lm, policy))


def test_a_request_keeps_its_text_in_any_batch(lm: nn.Module) -> None:
    policy = policy_for(lm, "every:3", "sample")
    together, _ = generated(lm, policy)
    turned, options = generated(lm, policy, rows=torch.tensor([2, 1, 0]), inputs=left_padded(PROMPTS[::-1]))
    assert turned == together[::-1]
    assert_reproduced(lm, policy, turned, options, PROMPTS[::-1], keys=[2, 1, 0])
    for b in range(3):
        assert generated(lm, policy, rows=torch.tensor([b]), inputs=left_padded(PROMPTS[b : b + 1]))[0] == together[b : b + 1]
    assert generated(lm, policy, rows=torch.tensor([5, 6, 7]))[0] != together


def test_records_know_the_rows(lm: nn.Module) -> None:
    policy, inputs = policy_for(lm, "every:3", "sample"), left_padded()
    with Attached(lm, policy, seed=SEED) as knobs:
        knobs.rows = torch.tensor([8, 3, 5])
        out_BL = lm.generate(**inputs, max_new_tokens=TOKENS)
        record = knobs.record(out_BL, inputs["input_ids"].shape[1], inputs["attention_mask"])
        assert torch.equal(record.option_BT[record.mask_BT], knobs.option_BT[:, : record.mask_BT.shape[1]][record.mask_BT])
        assert record.logps_BT[record.mask_BT].isfinite().all()


class Seen:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


def test_streamers(lm: nn.Module) -> None:
    policy, streamer = policy_for(lm, "token", "sample"), Seen()
    inputs = left_padded(PROMPTS[:1])
    responses, _ = generated(lm, policy, inputs=inputs, streamer=streamer)
    assert streamer.tokens == [*PROMPTS[0], *responses[0], -1]


def test_bfloat16(lm: nn.Module) -> None:
    model = tiny_lm("llama").to(torch.bfloat16)
    policy = policy_for(model, "token", "greedy")
    (first, options), (again, _) = generated(model, policy), generated(model, policy)
    assert first == again and (options < policy.space.K).all()


@pytest.mark.parametrize("processor", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"suppress_tokens": [3, 4, 5]}])
def test_penalties_act_on_the_logits_of_the_options(lm: nn.Module, processor: dict[str, Any]) -> None:
    policy, inputs = policy_for(lm, "token", "sample"), left_padded(PROMPTS[2:])
    torch.manual_seed(0)
    with Attached(lm, policy, seed=SEED):
        out = lm.generate(
            **inputs, max_new_tokens=TOKENS, return_dict_in_generate=True, output_scores=True, output_logits=True, **processor
        )
        bare = lm.generate(**inputs, max_new_tokens=TOKENS, **processor)
    assert bare.shape[0] == 1
    processors = lm._get_logits_processor(GenerationConfig(**processor), input_ids_seq_length=5, device="cpu")
    for t, (score_BV, logit_BV) in enumerate(zip(out.scores, out.logits, strict=True)):
        assert torch.allclose(score_BV, processors(out.sequences[:, : 5 + t], logit_BV.clone()), atol=1e-3)


def test_greedy_rows_survive_processors_that_forbid_their_token(lm: nn.Module) -> None:
    with Attached(lm, ConstantPolicy(KnobSpace.of({"temperature": [0.0]}), 0)):
        out_BL = lm.generate(torch.tensor([[3]]), max_new_tokens=4, min_new_tokens=4, suppress_tokens=list(range(2, VOCAB)))
    assert set(out_BL[0, 1:].tolist()) <= {0, 1}


def beam_scores(
    model: Any, policy: Policy, key: int, prompt: list[int], response: list[int], second: list[int] | None = None
) -> float:
    expected = steps(model, policy, key, prompt, response, second=second)
    return sum(step.logp_V[token].item() for step, token in zip(expected, response, strict=True))


@pytest.mark.parametrize("do_sample", [False, True], ids=["beam", "beam-sample"])
@pytest.mark.parametrize("pick", ["greedy", "sample"])
@pytest.mark.parametrize("level", LEVELS)
def test_beams_carry_their_options(lm: nn.Module, level: str, pick: str, do_sample: bool) -> None:
    """The score of each returned beam is the sum of what the oracle gives its own history."""
    policy, inputs = policy_for(lm, level, pick), left_padded()
    torch.manual_seed(0)
    with Attached(lm, policy, seed=SEED) as knobs:
        out = lm.generate(
            **inputs, max_new_tokens=5, num_beams=4, num_return_sequences=2, do_sample=do_sample, length_penalty=0.0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        record = knobs.record(out.sequences, 5, inputs["attention_mask"].repeat_interleave(2, 0))
        with pytest.raises(DecodingError, match="beam search"):
            _ = knobs.option_BT
    for b, response in enumerate(responses_of(out.sequences, 5)):
        expected = beam_scores(lm, policy, b // 2, PROMPTS[b // 2], response)
        assert out.sequences_scores[b].item() == pytest.approx(expected, abs=1e-3)
        assert record.logps_BT[b].sum().item() == pytest.approx(expected, abs=1e-3)


def test_beams_that_the_generation_config_of_the_model_asks_for_are_beams_too(
    lm: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a config that comes with the call leaves out, `generate` takes from the model's own."""
    policy, inputs = policy_for(lm, "sequence", "sample"), left_padded()
    with Attached(lm, policy, seed=SEED):
        wanted = lm.generate(**inputs, max_new_tokens=5, num_beams=4, do_sample=False)
    own = GenerationConfig(num_beams=4, do_sample=False, pad_token_id=0, eos_token_id=STOPS)
    monkeypatch.setattr(lm, "generation_config", own)
    with Attached(lm, policy, seed=SEED) as knobs:
        found = lm.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=5), do_sample=False)
        with pytest.raises(DecodingError, match="beam search"):
            _ = knobs.option_BT
    assert torch.equal(found, wanted)


def chi_square_of_pairs(model: Any, policy: Any, prompt: list[int], pairs: list[tuple[int, ...]]) -> float:
    """p-value of the first two tokens against the exact mixture over options, by enumeration."""
    exact: dict[tuple[int, ...], float] = {}
    first_V = mixture(model, policy, prompt)
    for a in first_V.nonzero().flatten().tolist():
        if a in STOPS:
            exact[(a,)] = first_V[a].item()
            continue
        for b, p in enumerate(mixture(model, policy, [*prompt, a]).tolist()):
            exact[a, b] = first_V[a].item() * p
    assert all(exact[pair] > 0 for pair in pairs)
    often = [pair for pair, p in exact.items() if p * len(pairs) >= 6]
    found = [sum(pair == key for pair in pairs) for key in often]
    wanted = [exact[key] * len(pairs) for key in often]
    found, wanted = [*found, len(pairs) - sum(found)], [*wanted, len(pairs) - sum(wanted)]
    return (
        float(stats.chisquare(found, wanted).pvalue) if wanted[-1] > 1 else float(stats.chisquare(found[:-1], found[:-1]).pvalue)
    )


@torch.no_grad()
def mixture(model: Any, policy: Any, ids: list[int]) -> Tensor:
    """(V,) probabilities of the next token, options drawn from the policy at this very token."""
    assert policy.pick == "sample" and policy.segmenter == Every(1)
    ids_1L = torch.tensor([ids])
    logits_1V = model(input_ids=ids_1L).logits[:, -1]
    hidden_1D = model.base_model(input_ids=ids_1L).last_hidden_state[:, -1]
    pi_K = policy.log_pi(Context(hidden_ND=hidden_1D, logits_NV=logits_1V))[0].exp()
    warped_KV = apply_options(logits_1V.expand(policy.space.K, -1), policy.space, torch.arange(policy.space.K))
    return pi_K @ warped_KV.softmax(-1)


DRAFTS: dict[str, dict[str, Any]] = {"prompt lookup": {"prompt_lookup_num_tokens": 3}, "assistant": {}}


@pytest.mark.parametrize("mode", DRAFTS)
def test_drafted_tokens_have_the_target_distribution(lm: nn.Module, mode: str) -> None:
    policy = policy_for(lm, "token", "sample")
    prompt, pairs = [5, 9, 7, 5, 9], []
    settings = dict(DRAFTS[mode]) or {"assistant_model": tiny_lm("llama", seed=1)}
    torch.manual_seed(0)
    for seed in range(250):
        with Attached(lm, policy, seed=seed):
            out_BL = lm.generate(torch.tensor([prompt]), max_new_tokens=4, **settings)
        pairs.append(tuple(responses_of(out_BL, len(prompt))[0][:2]))
    assert chi_square_of_pairs(lm, policy, prompt, pairs) > 1e-4


@pytest.mark.parametrize("mode", DRAFTS)
@pytest.mark.parametrize("level", LEVELS)
def test_drafts_of_every_level_stay_inside_their_options(lm: nn.Module, level: str, mode: str) -> None:
    policy, prompt = policy_for(lm, level, "sample"), [5, 9, 7, 5, 9]
    settings = dict(DRAFTS[mode]) or {"assistant_model": tiny_lm("llama", seed=1)}
    for seed in range(8):
        torch.manual_seed(seed)
        with Attached(lm, policy, seed=SEED) as knobs:
            out_BL = lm.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, **settings)
            option_BT = knobs.option_BT
            record = knobs.record(out_BL, len(prompt))
        (response,) = responses_of(out_BL, len(prompt))
        expected = steps(lm, policy, 0, prompt, response)
        assert all(step.logp_V[token].isfinite() for step, token in zip(expected, response, strict=True))
        assert option_BT[0, : len(response)].tolist() == [step.option for step in expected]
        assert record.option_BT[0].tolist() == [step.option for step in expected]


def test_continuous_batching(lm: nn.Module) -> None:
    """Greedy options of the token level: every token lies in the kept set of its own option, in all requests."""
    policy = policy_for(lm, "token", "greedy")
    with Attached(lm, policy):
        config = GenerationConfig(max_new_tokens=TOKENS, eos_token_id=-1, pad_token_id=0, do_sample=True, **POISON)
        small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
        done = lm.generate_batch([list(p) for p in PROMPTS], config, small, warmup=False)
    for b, prompt in enumerate(PROMPTS):
        response = done[f"req_{b}"].generated_tokens
        assert len(response) == TOKENS
        for step, token in zip(steps(lm, policy, b, prompt, response), response, strict=True):
            assert step.logp_V[token].isfinite()


@pytest.mark.parametrize(("level", "pick"), [("sequence", "greedy"), ("every:3", "greedy"), ("token", "sample")])
def test_continuous_batching_refuses_what_needs_to_know_the_request(lm: nn.Module, level: str, pick: str) -> None:
    message = "options cannot be drawn" if pick == "sample" else f"cannot carry level '{level}'"
    with Attached(lm, policy_for(lm, level, pick)), pytest.raises(DecodingError, match=message):
        lm.generate_batch([[3, 4]], generation_config=GenerationConfig(max_new_tokens=2))


def test_only_plain_sampling_is_done_in_the_hook(lm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("latentknobs.engines.transformers.attach.sample_values", lambda *a: calls.append(1) or sample_values(*a))
    with Attached(lm, UniformPolicy(KnobSpace.of("temperature"), Every(1))):
        lm.generate(**left_padded(), max_new_tokens=2)
        assert len(calls) == 2
        wants_scores = {"return_dict_in_generate": True, "output_scores": True}
        for settings in ({"num_beams": 2}, {"repetition_penalty": 1.1}, wants_scores, {"min_new_tokens": 1}):
            lm.generate(**left_padded(), max_new_tokens=2, **settings)
        assert len(calls) == 2
    with Attached(lm, UniformPolicy(KnobSpace.of("temperature"), Every(1)), sampler="transformers"):
        lm.generate(**left_padded(), max_new_tokens=2)
    assert len(calls) == 2


def test_penalty_knobs_read_the_tokens_of_their_own_row(lm: nn.Module) -> None:
    space = KnobSpace.of({"temperature": [1.0]}, {"repetition_penalty": [50.0]})
    policy, inputs = ConstantPolicy(space, 0), left_padded()
    with Attached(lm, policy, seed=SEED) as knobs:
        out_BL = lm.generate(**inputs, max_new_tokens=TOKENS)
        record = knobs.record(out_BL, 5, inputs["attention_mask"])
        lm.generate(**inputs, max_new_tokens=4, num_beams=2)
    assert record.logps_BT[record.mask_BT].isfinite().all()
    assert record.logps_BT.sum() > -60, "tokens that the penalty made unlikely would cost dozens of nats each"


@pytest.mark.slow
def test_compiled_forward(lm: nn.Module) -> None:
    policy = policy_for(lm, "every:3", "sample")
    compiled = CompileConfig(backend="eager", mode="default")
    compiled._compile_all_devices = True
    found = generated(lm, policy, cache_implementation="static", compile_config=compiled)
    assert_reproduced(lm, policy, *found)


def test_continuous_batching_in_which_the_policy_does_not_act(lm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    config = GenerationConfig(max_new_tokens=3, eos_token_id=-1, pad_token_id=0, do_sample=True)
    with Attached(lm, policy_for(lm, "token", "greedy")):
        monkeypatch.setattr("latentknobs.engines.transformers.attach.is_packed", lambda kwargs: False)
        with pytest.raises(DecodingError, match="generate_batch returned 3 new tokens, and the attached policy chose for 0"):
            lm.generate_batch([[3, 4]], config, small, warmup=False)
