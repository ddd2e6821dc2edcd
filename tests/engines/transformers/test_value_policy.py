"""The value policy: one sampler, every mode of generate, and the same tokens as a categorical policy of equal values."""

from typing import Any, ClassVar

import pytest
import torch
from decoding_oracle import LEVELS, SEED, left_padded, responses_of
from tiny_models import tiny_lm
from torch import nn

from latentknobs import KnobSpace
from latentknobs.engines.transformers import Attached
from latentknobs.heads.segmenters import Every, parse_level
from latentknobs.heads.value_head import ValueHead
from latentknobs.knobs.columns import Columns
from latentknobs.likelihood.apply import apply_values
from latentknobs.policies import ConstantPolicy, Policy
from latentknobs.policies.continuous import ValuePolicy
from latentknobs.tensors import pick
from latentknobs.testing import PolicyConformance

SPACE = KnobSpace.of({"temperature": [0.6, 1.5], "top_p": [0.7, 1.0]})
MODES: dict[str, dict[str, Any]] = {
    "plain": {}, "no cache": {"use_cache": False}, "chunks": {"prefill_chunk_size": 2}, "several": {"num_return_sequences": 2},
    "by generate": {"repetition_penalty": 1.2, "do_sample": True}, "beams": {"num_beams": 3, "do_sample": False},
}  # fmt: skip


def policy_for(model: nn.Module, level: str = "token", statistics: bool = True) -> ValuePolicy:
    """A head that tells positions apart."""
    torch.manual_seed(0)
    head = ValueHead(SPACE, model.config.hidden_size, hidden=16, statistics=statistics)
    for net in head.nets:
        nn.init.normal_(net[0].weight, std=0.5)
        nn.init.normal_(net[2].weight, std=1.5)
    return ValuePolicy(head, SPACE, parse_level(level, token_ids=(4, 7, 9)))


class TestConformance(PolicyConformance):
    model: ClassVar[nn.Module] = tiny_lm("llama")
    policy = policy_for(model)
    hidden_size = 16


class TestConformanceAcrossSegments(PolicyConformance):
    policy = policy_for(tiny_lm("llama"), "every:2", statistics=False)
    hidden_size = 16


def generated(model: nn.Module, policy: Policy, **settings: Any) -> tuple[torch.Tensor, Any]:
    torch.manual_seed(5)
    with Attached(model, policy, seed=SEED) as knobs:
        out_BL = model.generate(**left_padded(), max_new_tokens=7, **settings)
        copies = settings.get("num_return_sequences", 1)
        mask_BP = left_padded()["attention_mask"].repeat_interleave(copies, 0)
        plain = not {"repetition_penalty", "num_beams"} & settings.keys()
        return out_BL, knobs.record(out_BL, left_padded()["input_ids"].shape[1], mask_BP) if plain else None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", range(4))
def test_values_of_an_option_draw_the_tokens_of_the_option(mode: str, option: int) -> None:
    """Saturated networks give exactly the ends of their ranges."""
    model = tiny_lm("llama")
    policy = policy_for(model)
    for net, low, value in zip(policy.head.nets, (0.6, 0.7), SPACE.options[option].values(), strict=True):
        net[2].weight.data.zero_()
        net[2].bias.data.fill_(-1e4 if value == low else 1e4)
    found, _ = generated(model, policy, **MODES[mode])
    expected, _ = generated(model, ConstantPolicy(SPACE, option), **MODES[mode])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_record_recomputes_the_values_and_the_likelihoods_of_what_was_drawn(family: str, level: str) -> None:
    """Token by token from plain forward passes; Gemma 2 caps its logits."""
    model = tiny_lm(family)
    policy = policy_for(model, level)
    out_BL, record = generated(model, policy)
    inputs = left_padded()
    for b, response in enumerate(responses_of(out_BL, inputs["input_ids"].shape[1])):
        prompt = inputs["input_ids"][b][inputs["attention_mask"][b].bool()].tolist()
        ids_1L = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            out = model(input_ids=ids_1L, output_hidden_states=True)
        span = slice(len(prompt) - 1, len(prompt) - 1 + len(response))
        hidden_TD, logits_TV = model.base_model(input_ids=ids_1L).last_hidden_state[0, span].detach(), out.logits[0, span]

        with torch.no_grad():
            value_TJ = policy.head(hidden_TD, Columns(logits_TV))
        segment_T = policy.segmenter.segments(ids_1L[0, span])
        value_TJ = value_TJ[torch.searchsorted(segment_T, segment_T)]
        torch.testing.assert_close(record.value_BTJ[b, : len(response)].float(), value_TJ, atol=1e-4, rtol=1e-4)
        logps_TV = apply_values(logits_TV, SPACE, record.value_BTJ[b, : len(response)].float()).log_softmax(-1)
        logps_T = pick(logps_TV, torch.tensor(response))
        torch.testing.assert_close(record.logps_BT[b, : len(response)].float(), logps_T, atol=1e-3, rtol=1e-3)
        assert logps_T.isfinite().all()


def test_it_has_no_options_and_draws_nothing() -> None:
    policy = policy_for(tiny_lm("llama"))
    assert not policy.draws and policy.segmenter == Every(1)
    _, record = generated(tiny_lm("llama"), policy)
    assert record.option_BT is None and record.log_pi_BTK is None
