"""On a GPU: the same options, tokens and probabilities as on a CPU, and a host that does not wait for them.

Skipped where there is none.
"""

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from decoding_oracle import left_padded
from tiny_models import VOCAB, tiny_lm
from transformers import LlamaConfig, LlamaForCausalLM

import latentknobs as lk
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.errors import DecodingError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import parse_level
from latentknobs.likelihood.best import best_tokens, top_by_key
from latentknobs.policies import HeadPolicy, Policy, UniformPolicy
from latentknobs.policies.rules import EDT, Mirostat

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GUIDED = lk.KnobSpace.of("temperature:0,0.6,1.5", "guidance_scale:1,1.7,3", "repetition_penalty:1,1.3", "top_p:0.8,1")
CUT = lk.KnobSpace.of("temperature:0,0.5,1", "top_k:5,20", "top_p:0.7,0.9")


@pytest.mark.parametrize("level", ["token", "sequence", "every:3", "delimiter:."])
def test_a_gpu_writes_what_a_cpu_writes(level: str) -> None:
    policy, inputs = UniformPolicy(GUIDED, parse_level(level, token_ids=(4, 7, 9))), left_padded()
    made = []
    for device in ("cpu", "cuda"):
        model, here = tiny_lm("llama").double().to(device), {name: part.to(device) for name, part in inputs.items()}
        with Attached(model, policy, seed=5) as knobs:
            out_BL = model.generate(**here, max_new_tokens=12)
            record = knobs.record(out_BL, 5, here["attention_mask"])
        made.append((out_BL.cpu(), record.option_BT.cpu(), record.logps_BT.cpu()))
    (tokens, options, logps), (their_tokens, their_options, their_logps) = made
    assert torch.equal(tokens, their_tokens) and torch.equal(options, their_options)
    assert torch.allclose(logps, their_logps, atol=1e-9)


@pytest.mark.parametrize("policy", [Mirostat(3.0, 0.5), EDT(1.4, 0.5)], ids=lambda policy: type(policy).__name__)
def test_rules_choose_on_a_gpu_what_they_choose_on_a_cpu(policy: Policy) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model, inputs = tiny_lm("llama").double().to(device), {name: part.to(device) for name, part in left_padded().items()}
        with Attached(model, policy, seed=5) as knobs:
            out_BL, value_BTJ = model.generate(**inputs, max_new_tokens=12), knobs.value_BTJ
            record = knobs.record(out_BL, 5, inputs["attention_mask"])
            assert torch.allclose(record.value_BTJ[record.mask_BT], value_BTJ[record.mask_BT])
            found.append((out_BL.cpu(), value_BTJ.cpu()))
            model.generate(**inputs, max_new_tokens=4, num_beams=3, do_sample=False)
    assert torch.equal(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1])


def test_a_head_that_lies_on_the_cpu_follows_the_model() -> None:
    model, inputs = tiny_lm("llama").cuda(), {name: part.cuda() for name, part in left_padded().items()}
    head = OptionHead(GUIDED, model.config.hidden_size, 8)
    with Attached(model, HeadPolicy(head, GUIDED, parse_level("token"))):
        assert model.generate(**inputs, max_new_tokens=3).is_cuda


def test_values_outside_their_range_are_refused_when_the_call_ends() -> None:
    class Wrong(EDT):
        def choose(self, seen: lk.Context, uniform_N: torch.Tensor, state: Any = None) -> lk.Choice:
            return lk.Choice(torch.full((len(seen.logits_NV), 1), -0.5, device=seen.logits_NV.device))

    model = tiny_lm("llama").cuda()
    with Attached(model, Wrong(1.0, 1.0)), pytest.raises(DecodingError, match=r"Wrong chose temperature = -0\.5, outside"):
        model.generate(**{name: part.cuda() for name, part in left_padded().items()}, max_new_tokens=2)


@pytest.mark.parametrize("vocabulary", [1024, 32_000, 50_257])
@pytest.mark.parametrize("rounding", [None, 4])
def test_the_same_logits_give_the_same_top_and_the_same_tokens(vocabulary: int, rounding: int | None) -> None:
    logits_NV = torch.randn(64, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    logits_NV = logits_NV if rounding is None else (logits_NV * rounding).round() / rounding  # many ties
    best, (value_NM, token_NM) = best_tokens(logits_NV, 256), top_by_key(logits_NV.cuda(), 256)
    assert torch.equal(torch.from_numpy(best.value_NM), value_NM.cpu())
    assert torch.equal(best.tokens(range(64)), token_NM.cpu())
    for space in (
        CUT,
        lk.KnobSpace.of("temperature:0,1,1.5"),
        lk.KnobSpace.of("temperature:1,1.5", "top_p:0.9,1", "top_n_sigma"),
    ):
        value_NJ, key_N = space.values_KJ()[torch.arange(64) % space.K], torch.arange(64)
        for wide_NV, unequal in ((logits_NV.double(), 0), (logits_NV, 3)):  # sums in float32 round otherwise on each device
            ours_N = sample_values(wide_NV, space, value_NJ, 3, key_N, key_N)
            theirs_N = sample_values(wide_NV.cuda(), space, value_NJ.cuda(), 3, key_N.cuda(), key_N.cuda())
            assert (ours_N != theirs_N.cpu()).sum() <= unequal


def waits(model: Any, tokens: int, **settings: Any) -> Counter[str]:
    """Where the host waited for the GPU during one call of `generate`, and how often."""
    inputs = {name: part.cuda() for name, part in left_padded().items()}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model.generate(**inputs, max_new_tokens=tokens, eos_token_id=VOCAB, **settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{one.filename}:{one.lineno}" for one in told if "synchroniz" in str(one.message))


def per_step(model: Any, **settings: Any) -> int:
    """Waits of 16 steps, less those of every call."""
    waits(model, 2, **settings)
    return (waits(model, 20, **settings) - waits(model, 4, **settings)).total()


@pytest.fixture(scope="module")
def wide() -> Any:
    """A model whose vocabulary is wider than what the sampler keeps in order."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32_000}
    return LlamaForCausalLM(LlamaConfig(**shape, pad_token_id=0)).eval().cuda()


@pytest.mark.parametrize(
    ("knobs", "more"),
    [
        (["temperature:0,0.5,1"], 0),
        (["temperature:0,0.5,1", "guidance_scale:1,2", "repetition_penalty:1,1.3"], 0),
        (["temperature:0,0.5,1", "top_k:5,20", "top_p:0.7,0.9", "min_p:0,0.1"], 1),  # whether a cut lies beyond the best tokens
    ],
)
@pytest.mark.parametrize("level", ["token", "sequence", "every:3", "delimiter:."])
def test_a_step_waits_no_more_than_a_greedy_one_does(wide: Any, knobs: list[str], more: int, level: str) -> None:
    greedy, policy = per_step(wide, do_sample=False), UniformPolicy(lk.KnobSpace.of(*knobs), parse_level(level, token_ids=(4, 7)))
    with Attached(wide, policy) as attached:
        attached.rows = torch.tensor([8, 3, 5])
        assert per_step(wide) <= greedy + 16 * more
