"""Second logits after a prompt without its evidence, in every mode of `generate`, against one plain forward pass per token."""

from typing import Any

import pytest
import torch
from decoding_oracle import PROMPTS, SEED, left_padded, policy_for, responses_of, steps
from test_modes import MODES, beam_scores
from test_modes_families import model_of
from test_second import DRAFTS, SPACE, TOKENS, _only_the_best
from tiny_models import VOCAB, tiny_lm
from torch import Tensor, nn

import latentknobs as lk
from latentknobs.engines.transformers import Attached, TransformersEngine
from latentknobs.errors import DecodingError
from latentknobs.heads.segmenters import Every
from latentknobs.policies import ConstantPolicy, GreedyPolicy, UniformPolicy, reads

WITHOUT = [[8, 2, 6, 6, 3, 9, 4], [7, 4], [11, 5, 6]]  # one longer than its prompt, all of different lengths
POLICY = UniformPolicy(SPACE, Every(1))


def negative(prompts: list[list[int]] = WITHOUT) -> dict[str, Tensor]:
    """Arguments of `generate`."""
    padded = left_padded(prompts)
    return {"negative_prompt_ids": padded["input_ids"], "negative_prompt_attention_mask": padded["attention_mask"]}


@pytest.mark.parametrize("mode", [*MODES, *DRAFTS])
def test_guided_logits_equal_the_slow_ones_at_every_token(lm: nn.Module, mode: str) -> None:
    few = slice(None) if mode in MODES else slice(0, 1)
    prompts, without = PROMPTS[few], WITHOUT[few]
    settings = {"max_new_tokens": TOKENS, "eos_token_id": VOCAB} | (MODES | DRAFTS)[mode]
    torch.manual_seed(0)
    with Attached(lm, POLICY, seed=SEED) as knobs:
        out = lm.generate(
            **left_padded(prompts), **negative(without), **settings, return_dict_in_generate=True, output_logits=True
        )
        option_BT = knobs.option_BT
    responses = out.sequences[:, max(map(len, prompts)) :].tolist()
    for b, response in enumerate(responses):
        p = b * len(prompts) // len(responses)
        for t, step in enumerate(steps(lm, POLICY, b, prompts[p], response, second=without[p])):
            assert torch.allclose(out.logits[t][b].log_softmax(-1), step.logp_V, atol=2e-5)
            assert option_BT[b, t] == step.option


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mamba"])
def test_other_families(family: str) -> None:
    """Learned positions, sliding windows, and a state instead of a cache."""
    model = model_of(family)
    prompts, without = ([[5, 9, 7], [11, 3, 17]], [[8, 2], [7, 4]]) if family == "mamba" else (PROMPTS, WITHOUT)
    policy, inputs = policy_for(model, "token", "sample", SPACE), left_padded(prompts)
    with Attached(model, policy, seed=SEED) as knobs:
        out_BL = model.generate(**inputs, **negative(without), max_new_tokens=14)
        option_BT = knobs.option_BT
        record = knobs.record(out_BL, inputs["input_ids"].shape[1])
    for b, response in enumerate(responses_of(out_BL, inputs["input_ids"].shape[1])):
        expected = steps(model, policy, b, prompts[b], response, second=without[b])
        assert option_BT[b, : len(response)].tolist() == [step.option for step in expected]
        logps_T = torch.stack([step.logp_V[token] for step, token in zip(expected, response, strict=True)])
        assert torch.allclose(record.logps_BT[b, : len(response)], logps_T, atol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_beams_carry_their_evidence(lm: nn.Module, use_cache: bool) -> None:
    policy, inputs = policy_for(lm, "token", "sample", SPACE), left_padded()
    with Attached(lm, policy, seed=SEED) as knobs:
        out = lm.generate(
            **inputs, **negative(), max_new_tokens=5, num_beams=4, num_return_sequences=2, do_sample=False, length_penalty=0.0,
            use_cache=use_cache, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        record = knobs.record(out.sequences, 5)
    for b, response in enumerate(responses_of(out.sequences, 5)):
        expected = beam_scores(lm, policy, b // 2, PROMPTS[b // 2], response, WITHOUT[b // 2])
        assert out.sequences_scores[b].item() == pytest.approx(expected, abs=1e-3)
        assert record.logps_BT[b].sum().item() == pytest.approx(expected, abs=1e-3)


def test_records_of_older_calls_take_the_evidence_again(lm: nn.Module) -> None:
    inputs = left_padded()
    with Attached(lm, POLICY, seed=SEED) as knobs:
        out_BL = lm.generate(**inputs, **negative(), max_new_tokens=TOKENS)
        newest = knobs.record(out_BL, 5)
        lm.generate(**inputs, max_new_tokens=2)
        again, without = (knobs.record(out_BL, 5, inputs["attention_mask"], **more) for more in (negative(), {}))
    assert torch.equal(newest.logps_BT, again.logps_BT)
    assert not torch.allclose(newest.logps_BT, without.logps_BT, atol=1e-2)


@pytest.mark.parametrize("rows", [1, 12])
def test_engines_sample_what_a_reading_finds(rows: int) -> None:
    """Rows of different lengths leave the batch, and their evidence goes with those that stay."""
    engine, prompts = TransformersEngine(tiny_lm("llama").double(), Texts()), (PROMPTS * 4)[:rows]
    without = (WITHOUT * 4)[:rows]
    found = engine.sample(prompts, POLICY, max_new_tokens=24, seed=3, second_prompts=without)
    assert rows == 1 or len({len(row.ids) for row in found}) > 2
    seen = list(engine.observe(prompts, [row.ids for row in found], reads(POLICY), second_prompts=without))
    unaware = engine.sample(prompts, POLICY, max_new_tokens=24, seed=3)
    assert [row.ids for row in found] != [row.ids for row in unaware], "the evidence matters"
    for b, (row, observed) in enumerate(zip(found, seen, strict=True)):
        expected = steps(engine.model, POLICY, b, prompts[b], row.ids, 3, without[b])
        assert [step.option for step in expected] == list(row.options or ())
        for t, step in enumerate(expected):
            assert torch.allclose(observed.second_NV[t], step.context.second_NV[0], atol=1e-9)
            value_1J = torch.tensor([row.values[t]], dtype=torch.float64)
            drawn_1 = sample_token(observed, t, value_1J, b)
            assert drawn_1 == row.ids[t]


def sample_token(observed: Any, t: int, value_1J: Tensor, row: int) -> int:
    """The token of one row and position."""
    from latentknobs.engines.transformers.sampler import sample_values

    one = observed.rows(slice(t, t + 1))
    return int(sample_values(one.logits_NV, SPACE, value_1J, 3, torch.tensor([row]), torch.tensor([t]), one))


class Texts:
    """A tokenizer that only names its padding and writes ids."""

    pad_token_id, eos_token_id = 0, None

    def batch_decode(self, rows: Any, **settings: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def test_guidance_is_that_of_transformers_with_negative_prompts() -> None:
    """`generate(guidance_scale=..., negative_prompt_ids=...)` itself, which knows no positions of padded rows: one length."""
    model, inputs = tiny_lm("llama").double(), left_padded()
    settings: dict[str, Any] = {"max_new_tokens": TOKENS, "return_dict_in_generate": True}
    settings["negative_prompt_ids"] = torch.tensor([[8, 2], [7, 4], [5, 6]])
    theirs = model.generate(**inputs, **settings, do_sample=False, guidance_scale=1.7, output_scores=True)
    with Attached(model, ConstantPolicy(lk.KnobSpace.of({"guidance_scale": [1.7]}), 0)):
        ours = model.generate(**inputs, **settings, output_logits=True, logits_processor=[_only_the_best])
    assert torch.equal(ours.sequences, theirs.sequences)
    for logits_BV, scores_BV in zip(ours.logits, theirs.scores, strict=True):
        assert torch.allclose(logits_BV.double(), scores_BV, atol=1e-5)


IDS = torch.tensor([[3, 4]])
REFUSED = {
    "a policy that does not read it": (
        GreedyPolicy(),
        {"negative_prompt_ids": IDS},
        "does nothing here: no knob of .*temperature",
    ),
    "another number of rows": (
        POLICY,
        {"negative_prompt_ids": IDS.repeat(2, 1)},
        r"tensor of shape \(2, 2\), and there are 1 prompts",
    ),
    "no tensor": (POLICY, {"negative_prompt_ids": [[3, 4]]}, "negative_prompt_ids is 'list'"),
    "no ids": (POLICY, {"negative_prompt_ids": IDS.float()}, "Pass the token ids of each prompt without its evidence"),
    "another mask": (
        POLICY,
        {"negative_prompt_ids": IDS, "negative_prompt_attention_mask": torch.ones(1, 3)},
        r"negative_prompt_attention_mask, \(1, 3\), must have the shape",
    ),
    "padding on the right": (
        POLICY,
        {"negative_prompt_ids": IDS, "negative_prompt_attention_mask": torch.tensor([[1, 0]])},
        "pad on the left",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_evidence_that_cannot_be_used_is_refused(lm: nn.Module, what: str) -> None:
    policy, arguments, message = REFUSED[what]
    with Attached(lm, policy), pytest.raises(DecodingError, match=message):
        lm.generate(IDS, max_new_tokens=2, **arguments)
