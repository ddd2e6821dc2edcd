"""`record`: what was chosen, read back from the final ids alone, equals what happened."""

import pytest
import torch
from decoding_oracle import LEVELS, PROMPTS, SEED, SPACE, left_padded, policy_for, responses_of, steps
from torch import Tensor, nn

from latentknobs.engines.transformers import Attached, Record
from latentknobs.engines.transformers.record import split_sequences
from latentknobs.heads.segmenters import Every
from latentknobs.policies import Policy, UniformPolicy

TOKENS = 12


def recorded(model: nn.Module, policy: Policy, copies: int = 1) -> tuple[Record, Tensor, list[list[int]]]:
    inputs = left_padded()
    width = inputs["input_ids"].shape[1]
    torch.manual_seed(3)
    with Attached(model, policy, seed=SEED) as knobs:
        out_BL = model.generate(**inputs, max_new_tokens=TOKENS, num_return_sequences=copies)
        option_BT = knobs.option_BT
        record = knobs.record(out_BL, width, inputs["attention_mask"].repeat_interleave(copies, 0))
        again = knobs.record(out_BL, width, inputs["attention_mask"].repeat_interleave(copies, 0))
    assert torch.equal(again.option_BT, record.option_BT), "reading changes nothing"
    return record, option_BT, responses_of(out_BL, width)


@pytest.mark.parametrize("pick", ["greedy", "sample"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_record_equals_brute_force_in_every_field(lm: nn.Module, level: str, pick: str) -> None:
    policy = policy_for(lm, level, pick)
    record, option_BT, responses = recorded(lm, policy, copies=2)
    assert len({len(response) for response in responses}) > 1, "some rows must end early for this test to mean anything"
    assert record.mask_BT.sum(1).tolist() == [len(response) for response in responses]
    for b, response in enumerate(responses):
        assert record.option_BT[b, : len(response)].tolist() == option_BT[b, : len(response)].tolist()
        for t, step in enumerate(steps(lm, policy, b, PROMPTS[b // 2], response)):
            assert record.option_BT[b, t] == step.option and record.segment_BT[b, t] == step.segment
            assert torch.allclose(record.log_pi_BTK[b, t], step.log_pi_K, atol=2e-5)
            assert torch.allclose(record.logps_BT[b, t], step.logp_V[response[t]], atol=2e-5)
            kept_mass = step.lm_logp_V.exp()[step.logp_V.isfinite()].sum()
            assert torch.allclose(record.log_kept_BT[b, t].exp(), kept_mass, atol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_records_of_other_families(lms: dict[str, nn.Module], family: str) -> None:
    policy = policy_for(lms[family], "every:3", "sample")
    record, option_BT, responses = recorded(lms[family], policy, copies=2)
    for b, response in enumerate(responses):
        expected = steps(lms[family], policy, b, PROMPTS[b // 2], response)
        assert record.option_BT[b, : len(response)].tolist() == [step.option for step in expected]
        assert option_BT[b, : len(response)].tolist() == [step.option for step in expected]
        logp_T = torch.stack([step.logp_V[token] for step, token in zip(expected, response, strict=True)])
        assert torch.allclose(record.logps_BT[b, : len(response)], logp_T, atol=2e-5)


def test_sampled_tokens_are_possible_and_kept_mass_is_a_probability(lm: nn.Module) -> None:
    record, _, _ = recorded(lm, UniformPolicy(SPACE, Every(1)), copies=4)
    assert record.logps_BT[record.mask_BT].isfinite().all()
    assert (record.logps_BT <= 0).all() and (record.log_kept_BT <= 1e-6).all()
    neutral_BT = record.mask_BT & (record.values()["top_p"] == 1) & (record.values()["temperature"] > 0)
    assert neutral_BT.any() and torch.allclose(record.log_kept_BT[neutral_BT], torch.tensor(0.0), atol=1e-6)
    greedy_BT = record.mask_BT & (record.values()["temperature"] == 0)
    assert greedy_BT.any() and (record.logps_BT[greedy_BT] == 0).all()


def test_values_are_those_of_the_chosen_options(lm: nn.Module) -> None:
    record, _, _ = recorded(lm, policy_for(lm, "token", "sample"))
    for b, t in record.mask_BT.nonzero().tolist():
        option = SPACE.options[record.option_BT[b, t]]
        assert {name: value_BT[b, t].item() for name, value_BT in record.values().items()} == option


def test_reading_does_not_disturb_what_follows(lm: nn.Module) -> None:
    policy = policy_for(lm, "every:3", "sample")
    inputs = left_padded()
    with Attached(lm, policy, seed=SEED) as knobs:
        torch.manual_seed(0)
        first_BL = lm.generate(**inputs, max_new_tokens=5)
        option_BT = knobs.option_BT.clone()
        knobs.record(first_BL, 5, inputs["attention_mask"])
        assert torch.equal(knobs.option_BT, option_BT)
        torch.manual_seed(0)
        assert torch.equal(lm.generate(**inputs, max_new_tokens=5), first_BL)


@pytest.mark.parametrize("stop", [7, [7, 8], None])
def test_sequences_split_at_padding_and_at_the_first_end(lm: nn.Module, monkeypatch: pytest.MonkeyPatch, stop: object) -> None:
    monkeypatch.setattr(lm.generation_config, "eos_token_id", stop)
    sequences_BL = torch.tensor([[0, 5, 9, 8, 7, 7], [4, 5, 9, 9, 9, 9]])
    mask_BP = torch.tensor([[0, 1], [1, 1]])
    prompts, responses = split_sequences(lm, sequences_BL, 2, mask_BP)
    assert prompts == [[5], [4, 5]]
    first = {7: [9, 8, 7], None: [9, 8, 7, 7]}.get(stop if not isinstance(stop, list) else "two", [9, 8])
    assert responses == [first, [9, 9, 9, 9]]
    assert split_sequences(lm, sequences_BL, 2)[0] == [[0, 5], [4, 5]]
