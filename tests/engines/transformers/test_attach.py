"""`attach`: `generate` samples exactly from the options that the policy chooses, in batches, with and without a cache."""

import pytest
import torch
from decoding_oracle import LEVELS, PROMPTS, SEED, SPACE, left_padded, policy_for, responses_of, steps
from tiny_models import STOPS, VOCAB, tiny_lm
from torch import Tensor, nn
from transformers.utils import ModelOutput

from latentknobs import KnobSpace
from latentknobs.engines.transformers import Attached
from latentknobs.policies import ConstantPolicy, Policy

TOKENS = 9


def generated(
    model: nn.Module, policy: Policy, seed: int = 0, **settings: object
) -> tuple[list[list[int]], list[Tensor], Tensor]:
    """Responses, the (T, V) probabilities each row's tokens were drawn from, and the (B, T) options."""
    inputs = left_padded()
    torch.manual_seed(seed)
    with Attached(model, policy, seed=SEED) as knobs:
        told = {"max_new_tokens": TOKENS, "return_dict_in_generate": True, "output_scores": True, **settings}
        out = model.generate(**inputs, **told)
        option_BT = knobs.option_BT
    responses = responses_of(out.sequences, inputs["input_ids"].shape[1])
    probs_BTV = torch.stack(out.scores, 1).softmax(-1)
    return responses, [probs_BTV[b, : len(r)] for b, r in enumerate(responses)], option_BT


def assert_as_the_oracle(model: nn.Module, policy: Policy, found: tuple[list[list[int]], list[Tensor], Tensor]) -> None:
    responses, probs, option_BT = found
    prompts = [p for p in PROMPTS for _ in range(len(responses) // len(PROMPTS))]
    for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = steps(model, policy, b, prompt, response)
        assert option_BT[b, : len(response)].tolist() == [step.option for step in expected]
        for t, step in enumerate(expected):
            assert torch.allclose(probs[b][t], step.logp_V.exp(), atol=2e-5), (b, t)
            assert (probs[b][t][step.logp_V.isneginf()] == 0).all(), "removed tokens have no probability at all"
            assert step.logp_V[response[t]].isfinite(), "nothing outside the kept set is ever sampled"


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("pick", ["greedy", "sample"])
@pytest.mark.parametrize("level", LEVELS)
def test_tokens_are_drawn_from_the_chosen_options(lm: nn.Module, level: str, pick: str, use_cache: bool) -> None:
    policy = policy_for(lm, level, pick)
    found = generated(lm, policy, use_cache=use_cache)
    assert_as_the_oracle(lm, policy, found)
    if level != "sequence":
        assert len(found[2][:, :TOKENS].unique()) > 1, "the head must choose several options for this test to mean anything"


@pytest.mark.parametrize("level", ["token", "delimiter:."])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families_too_learned_positions_and_logits_capped_after_the_output_embeddings(
    lms: dict[str, nn.Module], family: str, level: str
) -> None:
    model = lms[family]
    policy = policy_for(model, level, "sample")
    assert_as_the_oracle(model, policy, generated(model, policy))


@pytest.mark.parametrize("level", LEVELS)
def test_several_samples_per_prompt_choose_for_themselves(lm: nn.Module, level: str) -> None:
    policy = policy_for(lm, level, "sample")
    found = generated(lm, policy, num_return_sequences=3)
    assert len(found[0]) == 9
    assert_as_the_oracle(lm, policy, found)


def test_the_cache_changes_nothing(lm: nn.Module) -> None:
    policy = policy_for(lm, "every:3", "sample")
    with_cache, without = generated(lm, policy), generated(lm, policy, use_cache=False)
    assert with_cache[0] == without[0]
    for b, response in enumerate(with_cache[0]):
        assert with_cache[2][b, : len(response)].tolist() == without[2][b, : len(response)].tolist()


@pytest.mark.parametrize("settings", [{"cache_implementation": "static", "disable_compile": True}, {"prefill_chunk_size": 2}])
def test_other_ways_to_fill_the_cache_change_nothing(lm: nn.Module, settings: dict[str, object]) -> None:
    policy = policy_for(lm, "every:3", "sample")
    assert_as_the_oracle(lm, policy, generated(lm, policy, **settings))


def test_a_second_generate_starts_afresh(lm: nn.Module) -> None:
    """Another prompt length and batch size, on the same attachment."""
    policy = policy_for(lm, "sequence", "sample")
    with Attached(lm, policy, seed=SEED) as knobs:
        lm.generate(**left_padded(), max_new_tokens=TOKENS)
        out_BL = lm.generate(**left_padded(PROMPTS[:1]), max_new_tokens=4)
        option_BT = knobs.option_BT
    (response,) = responses_of(out_BL, 3)
    assert option_BT.shape[0] == 1
    assert option_BT[0, : len(response)].tolist() == [s.option for s in steps(lm, policy, 0, PROMPTS[0], response)]


def test_options_are_as_many_as_new_tokens(lm: nn.Module) -> None:
    with Attached(lm, policy_for(lm, "token", "sample")) as knobs:
        out_BL = lm.generate(**left_padded(), max_new_tokens=TOKENS)
        assert knobs.option_BT.shape == (3, out_BL.shape[1] - left_padded()["input_ids"].shape[1])


def test_the_same_seed_draws_the_same_options_and_another_seed_others(lm: nn.Module) -> None:
    policy = policy_for(lm, "token", "sample")

    def drawn(seed: int) -> list[int]:
        torch.manual_seed(0)
        with Attached(lm, policy, seed=seed) as knobs:
            lm.generate(**left_padded(), max_new_tokens=TOKENS)
            return knobs.option_BT[:, 0].tolist() + knobs.option_BT[0, :TOKENS].tolist()

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1


def test_a_constant_temperature_zero_is_greedy_decoding(lm: nn.Module) -> None:
    policy = ConstantPolicy(KnobSpace.of({"temperature": [0.0, 1.0]}), 0)
    plain_BL = lm.generate(**left_padded(), max_new_tokens=TOKENS, do_sample=False)
    with Attached(lm, policy):
        assert torch.equal(lm.generate(**left_padded(), max_new_tokens=TOKENS), plain_BL)


def test_a_constant_neutral_option_is_plain_sampling(lm: nn.Module) -> None:
    neutral = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    torch.manual_seed(4)
    plain_BL = lm.generate(**left_padded(), max_new_tokens=TOKENS, **neutral)
    torch.manual_seed(4)
    with Attached(lm, ConstantPolicy(KnobSpace.of({"temperature": [1.0]}), 0), sampler="transformers"):
        assert torch.equal(lm.generate(**left_padded(), max_new_tokens=TOKENS), plain_BL)


@pytest.mark.parametrize("offset", [0.0, -300.0, 300.0])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_removed_tokens_stay_removed_wherever_the_logits_lie(lm: nn.Module, temperature: float, offset: float) -> None:
    """Logits have no zero: a model may put all of them near -300, and a cold option multiplies that by 100."""
    space = KnobSpace.of({"temperature": [temperature], "top_k": [2]})

    def shifted(module: nn.Module, args: tuple[object, ...], out: ModelOutput) -> None:
        out.logits = out.logits + offset

    shift = lm.register_forward_hook(shifted)
    try:
        responses, probs, _ = generated(lm, ConstantPolicy(space, 0))
    finally:
        shift.remove()
    assert all(((prob_TV > 0).sum(-1) <= 2).all() for prob_TV in probs)
    unshifted, _, _ = generated(lm, ConstantPolicy(space, 0))
    assert responses == unshifted


def test_later_processors_may_still_forbid_tokens(lm: nn.Module) -> None:
    """`min_new_tokens` forbids the end of sequence even where an option keeps nothing else."""
    policy = ConstantPolicy(KnobSpace.of({"temperature": [0.0]}), 0)
    with Attached(lm, policy):
        for b in range(8):
            out_BL = lm.generate(torch.tensor([[b + 3]]), max_new_tokens=6, min_new_tokens=6)
            assert not set(STOPS) & set(out_BL[0, 1:].tolist())
        forbidden = list(range(2, VOCAB))
        out_BL = lm.generate(torch.tensor([[3]]), max_new_tokens=4, min_new_tokens=4, suppress_tokens=forbidden)
        assert set(out_BL[0, 1:].tolist()) <= {0, 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = tiny_lm("llama").to(dtype)
    policy = policy_for(model, "token", "greedy")
    responses, probs, option_BT = generated(model, policy)
    assert all(prob_TV.isfinite().all() for prob_TV in probs)
    assert len(responses) == 3 and (option_BT < SPACE.K).all()
