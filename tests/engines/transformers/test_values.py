"""Values that come from no grid, and policies that remember: the same tokens, whatever the batch and the way of generating."""

from typing import Any

import pytest
import torch
from decoding_oracle import LEVELS, SEED, left_padded, policy_for, responses_of
from hypothesis import given
from hypothesis import strategies as st
from test_leaving import MANY, leaving
from test_leaving import TOKENS as MANY_TOKENS
from tiny_models import STOPS, VOCAB, tiny_lm
from torch import Tensor, nn
from transformers import GenerationConfig

from latentknobs import Choice, Context, KnobSpace, Policy
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.sampler import sample_values
from latentknobs.errors import DecodingError
from latentknobs.heads.segmenters import Every
from latentknobs.policies import CategoricalPolicy, UniformPolicy
from latentknobs.policies.rules import EDT, Mirostat

SPACE = KnobSpace.of({"temperature": [0.0, 0.6, 1.5], "top_p": [0.7, 1.0]})
TOKENS = 9


class AsValues(Policy):
    """The values of a categorical policy, without its options."""

    def __init__(self, policy: CategoricalPolicy) -> None:
        self.space, self.segmenter, self.inner = policy.space, policy.segmenter, policy

    def choose(self, seen: Context, uniform_N: Tensor, state: Any = None) -> Choice:
        return Choice(self.inner.choose(seen, uniform_N, state).value_NJ.float())


class Budgeted(Policy):
    """Colder as its budget runs out, hotter with more samples."""

    needs = ("remaining_N", "samples_N")
    draws = False

    def __init__(self) -> None:
        self.space, self.segmenter = KnobSpace.of({"temperature": [1.0]}), Every(1)

    def choose(self, seen: Context, uniform_N: Tensor, state: Any = None) -> Choice:
        return Choice((seen.remaining_N / 10 + seen.samples_N).double().unsqueeze(-1))


MODES: dict[str, dict[str, Any]] = {
    "plain": {}, "no cache": {"use_cache": False}, "chunks": {"prefill_chunk_size": 2},
    "by generate": {"repetition_penalty": 1.2, "do_sample": True}, "beams": {"num_beams": 3, "do_sample": False},
    "several": {"num_return_sequences": 2},
}  # fmt: skip


@pytest.fixture
def endless() -> nn.Module:
    """A model whose responses never end."""
    model = tiny_lm("llama")
    model.generation_config.eos_token_id = VOCAB
    return model


@given(st.integers(0, 2**32), st.floats(0.1, 2), st.floats(0.3, 1), st.integers(1, 5))
def test_one_sampler_draws_from_values_wherever_they_come_from(seed: int, temperature: float, top_p: float, rows: int) -> None:
    """In float64: an option's values, and the same numbers from elsewhere, which for a value policy need be in no grid."""
    logits_NV = torch.randn(rows, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    here, there = (KnobSpace.of({"temperature": [t], "top_p": [p]}) for t, p in ((temperature, top_p), (1.0, 1.0)))
    keys = (seed, torch.arange(rows), torch.arange(rows) + 3)
    value_NJ = torch.tensor([[temperature, top_p]], dtype=torch.float64).expand(rows, -1)
    from_options_N = sample_values(logits_NV, here, here.values_KJ().expand(rows, -1), *keys)
    assert torch.equal(from_options_N, sample_values(logits_NV, there, value_NJ, *keys))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "beams"])
def test_a_categorical_policy_and_its_values_draw_the_same_tokens(endless: nn.Module, mode: str, level: str) -> None:
    policy, found = policy_for(endless, level, "sample", SPACE), []
    for either in (policy, AsValues(policy)):
        torch.manual_seed(0)
        with Attached(endless, either, seed=SEED) as attached:
            ids_BL = endless.generate(**left_padded(), max_new_tokens=TOKENS, **MODES[mode])
            found.append((ids_BL, attached.value_BTJ, attached))
    (ids_BL, value_BTJ, attached), (other_BL, other_BTJ, other) = found
    assert torch.equal(ids_BL, other_BL) and torch.allclose(value_BTJ, other_BTJ, atol=1e-6)
    assert torch.equal(value_BTJ, SPACE.values_KJ()[attached.option_BT])
    with pytest.raises(DecodingError, match=r"AsValues does not choose among options. Read its values from value_BTJ"):
        _ = other.option_BT


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "by generate"])  # where a record is refused
@pytest.mark.parametrize("policy", [Mirostat(3.0, 0.5), EDT(1.4, 0.5)], ids=lambda policy: type(policy).__name__)
def test_a_record_reads_back_what_was_chosen_in_every_mode(endless: nn.Module, policy: Policy, mode: str) -> None:
    inputs, copies = left_padded(), MODES[mode].get("num_return_sequences", 1)
    torch.manual_seed(0)
    with Attached(endless, policy, seed=SEED) as attached:
        out = endless.generate(
            **inputs, max_new_tokens=TOKENS, length_penalty=0.0, return_dict_in_generate=True,
            output_scores=mode == "beams", **MODES[mode],
        )  # fmt: skip
        record = attached.record(out.sequences, 5, inputs["attention_mask"].repeat_interleave(copies, 0))
        if mode == "beams":  # whose rows are followed through every reordering: scores are sums of log-probabilities
            assert torch.allclose(out.sequences_scores, record.logps_BT.sum(-1), atol=1e-3)
        else:
            assert torch.allclose(attached.value_BTJ, record.value_BTJ, rtol=1e-3)
    assert record.option_BT is None and record.log_pi_BTK is None
    assert len({round(value, 6) for value in record.value_BTJ.flatten().tolist()}) > TOKENS, "values come from no grid"


def test_a_state_follows_the_tokens_that_drafts_leave(endless: nn.Module) -> None:
    prompt, policy = torch.tensor([[5, 9, 7, 5, 9, 7, 5, 9]]), Mirostat(1.0, 0.5)
    torch.manual_seed(1)
    with Attached(endless, policy, seed=SEED) as attached:
        ids_1L = endless.generate(prompt, max_new_tokens=16, prompt_lookup_num_tokens=3)
        assert torch.allclose(attached.value_BTJ[:, : ids_1L.shape[1] - 8], attached.record(ids_1L, 8).value_BTJ, rtol=1e-3)


@pytest.mark.parametrize("policy", [Mirostat(3.0, 0.5), EDT(1.4, 0.5), Budgeted()], ids=lambda policy: type(policy).__name__)
def test_rows_that_leave_or_are_split_into_batches_get_the_tokens_of_those_that_stay(policy: Policy) -> None:
    lm, inputs = tiny_lm("llama"), left_padded(MANY)
    lm.generation_config.eos_token_id = STOPS[:2]
    with Attached(lm, policy, seed=SEED) as attached:
        together = responses_of(lm.generate(**inputs, max_new_tokens=MANY_TOKENS, pad_token_id=0), 5)
        parts: dict[int, list[int]] = {}
        for rows in ([3, 1, 20], [0], list(range(4, 20)), [23, 22, 21, 2]):
            attached.rows = torch.tensor(rows)
            part = {name: tensor[rows] for name, tensor in inputs.items()}
            ids_BL = lm.generate(**part, max_new_tokens=MANY_TOKENS, pad_token_id=0)
            parts |= dict(zip(rows, responses_of(ids_BL, 5), strict=True))
    assert [parts[row] for row in range(len(MANY))] == together
    (left, _), calls = leaving(lm, policy)
    assert left == together and len(calls) > 1


def test_budgets_are_what_the_call_says(endless: nn.Module) -> None:
    policy, inputs = Budgeted(), left_padded()
    with Attached(endless, policy) as attached:
        ids_BL = endless.generate(**inputs, max_new_tokens=4, num_return_sequences=2)
        expected_BT = (torch.tensor([4, 3, 2, 1]) / 10 + 2).double().expand(6, -1)
        assert torch.allclose(attached.value_BTJ.squeeze(-1), expected_BT)
        mask_BP = inputs["attention_mask"].repeat_interleave(2, 0)
        assert torch.allclose(attached.record(ids_BL, 5, mask_BP).value_BTJ.squeeze(-1), expected_BT)
        attached.samples = 7
        endless.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=2))
        assert torch.allclose(attached.value_BTJ[0, :, 0], torch.tensor([7.2, 7.1], dtype=torch.float64))
        endless.generate(**inputs, max_length=7)
        assert torch.allclose(attached.value_BTJ[0, :, 0], torch.tensor([7.2, 7.1], dtype=torch.float64))
        with pytest.raises(DecodingError, match=r"reads remaining_N, .* not known here. Pass max_new_tokens to generate"):
            endless.generate(**inputs)


@pytest.mark.parametrize(("value", "shown"), [(-0.5, "-0.5"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_values_outside_the_range_of_their_knob_are_refused_by_name(lm: nn.Module, value: float, shown: str) -> None:
    class Wrong(EDT):
        def temperature(self, entropy_N: Tensor, vocabulary: int) -> Tensor:
            return torch.full_like(entropy_N, value)

        def choose(self, seen: Context, uniform_N: Tensor, state: Any = None) -> Choice:
            return Choice(torch.full((len(seen.logits_NV), 1), value))

    message = f"The policy Wrong chose temperature = {shown}, outside the range of that knob, from 0. Bound"
    with Attached(lm, Wrong(1.0, 1.0)), pytest.raises(DecodingError, match=message):
        lm.generate(**left_padded(), max_new_tokens=2)


def test_beams_without_a_cache_and_batches_of_requests_cannot_carry_what_a_policy_remembers(lm: nn.Module) -> None:
    with Attached(lm, Mirostat(3.0)):
        with pytest.raises(DecodingError, match=r"cannot carry what Mirostat remembers from token to token. Use use_cache=True"):
            lm.generate(**left_padded(), max_new_tokens=2, num_beams=2, use_cache=False)
        with pytest.raises(DecodingError, match=r"generate_batch.* cannot carry what Mirostat remembers"):
            lm.generate_batch([[3, 4]], generation_config=GenerationConfig(max_new_tokens=2))


def test_a_segment_whose_rows_change_in_number_is_refused(lm: nn.Module) -> None:
    with Attached(lm, UniformPolicy(SPACE, Every(3))), torch.no_grad():
        output = lm(torch.tensor([[3, 4]]))
        cache = output.past_key_values
        cache.batch_repeat_interleave(2)
        with pytest.raises(DecodingError, match="The number of rows changed in the middle of their responses"):
            lm(torch.tensor([[5], [6]]), past_key_values=cache)
