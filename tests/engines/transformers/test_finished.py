"""Records of what `generate` returned: right, or refused, under every setting that ends rows or changes distributions."""

from typing import Any

import pytest
import torch
from decoding_oracle import left_padded, policy_for
from tiny_models import STOPS, tiny_lm
from torch import Tensor, nn
from transformers import GenerationConfig

import latentknobs as lk
from latentknobs import testbed
from latentknobs.data.prompts import Prompt
from latentknobs.data.rollouts import roll_out
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.settings import announce
from latentknobs.errors import DecodingError
from latentknobs.policies import ConstantPolicy

WARM = ConstantPolicy(lk.KnobSpace.of({"temperature": [1.0]}), 0)
SHAPED: list[dict[str, Any]] = [
    {"suppress_tokens": [3, 4]}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[5]]}, {"repetition_penalty": 1.4},
    {"min_new_tokens": 3}, {"min_length": 9}, {"sequence_bias": {(5,): 1.0}}, {"renormalize_logits": True},
    {"begin_suppress_tokens": [4]}, {"forced_eos_token_id": 2}, {"exponential_decay_length_penalty": (2, 1.1)},
    {"logits_processor": [lambda ids_BL, scores_BV: scores_BV]},
]  # fmt: skip


@pytest.mark.parametrize("shaped", SHAPED, ids=lambda shaped: next(iter(shaped)))
def test_what_changes_the_distribution_acts_and_is_refused_by_record(lm: nn.Module, shaped: dict[str, Any]) -> None:
    inputs = left_padded()
    with Attached(lm, WARM) as knobs:
        out_BL = lm.generate(**inputs, max_new_tokens=8, **shaped)
        with pytest.raises(DecodingError, match=r"applied .* after the policy.*a record would be wrong"):
            knobs.record(out_BL, inputs["input_ids"].shape[1], inputs["attention_mask"])
        out_BL = lm.generate(**inputs, max_new_tokens=8)
        assert knobs.record(out_BL, inputs["input_ids"].shape[1]).logps_BT.isfinite().all()


@pytest.mark.parametrize("shaped", SHAPED[:-1], ids=lambda shaped: next(iter(shaped)))
def test_in_the_models_own_config_it_is_off_and_said_once(shaped: dict[str, Any]) -> None:
    model, inputs = tiny_lm("llama"), left_padded()
    with Attached(model, WARM):
        plain_BL = model.generate(**inputs, max_new_tokens=8)
    model.generation_config.update(**shaped)
    announce.cache_clear()
    with Attached(model, WARM) as knobs, pytest.warns(UserWarning, match=f"{next(iter(shaped))}=.* off: the policy alone"):
        assert torch.equal(model.generate(**inputs, max_new_tokens=8), plain_BL)
        assert knobs.record(plain_BL, inputs["input_ids"].shape[1]).logps_BT.isfinite().all()


def _second_row_after_three(ids_BL: Tensor, scores: Any, **kwargs: Any) -> Tensor:
    return (torch.arange(len(ids_BL)) == 1) & (ids_BL.shape[1] >= left_padded()["input_ids"].shape[1] + 3)


ENDS: list[dict[str, Any]] = [
    {"eos_token_id": [7, 9, 11]}, {"generation_config": GenerationConfig(eos_token_id=[7, 9, 11], pad_token_id=0)},
    {"stopping_criteria": [_second_row_after_three], "eos_token_id": -1, "pad_token_id": 1},
    {"eos_token_id": -1}, {"pad_token_id": 5}, {},
]  # fmt: skip


@pytest.mark.parametrize("sampler", ["own", "transformers"])
@pytest.mark.parametrize("settings", ENDS, ids=[str(n) for n in range(len(ENDS))])
def test_a_response_is_what_came_before_its_padding(settings: dict[str, Any], sampler: Any) -> None:
    model, inputs = tiny_lm("llama"), left_padded()
    width, length = inputs["input_ids"].shape[1], 16
    with Attached(model, WARM, sampler=sampler) as knobs:
        out_BL = model.generate(**inputs, max_new_tokens=length, **settings)
        record = knobs.record(out_BL, width)
    ends = settings.get("eos_token_id", [7, 9, 11] if "generation_config" in settings else STOPS)
    expected = []
    for b, row in enumerate(out_BL[:, width:].tolist()):
        first = next((t + 1 for t, token in enumerate(row) if token in (ends if isinstance(ends, list) else [])), len(row))
        expected.append(3 if "stopping_criteria" in settings and b == 1 else first)
    assert record.mask_BT.sum(-1).tolist() == expected


def test_stop_strings_end_responses_too() -> None:
    model, tokenizer = testbed.load_model(), testbed.load_tokenizer()
    inputs = tokenizer(["Problem: ", "Title: The dog"], return_tensors="pt", padding=True, padding_side="left")
    width, stop = inputs["input_ids"].shape[1], ["a", "7"]
    with Attached(model, WARM) as knobs:
        out_BL = model.generate(**inputs, max_new_tokens=24, stop_strings=stop, tokenizer=tokenizer)
        record = knobs.record(out_BL, width)
    for row, length in zip(out_BL[:, width:], record.mask_BT.sum(-1).tolist(), strict=True):
        text = tokenizer.decode(row[:length], skip_special_tokens=True)
        assert length in (24, len(row)) or any(word in text for word in stop) or row[length - 1] == tokenizer.eos_token_id
        assert not any(word in tokenizer.decode(row[: length - 1]) for word in stop)
    assert record.logps_BT.isfinite().all()


def test_an_attention_mask_that_generate_infers_is_the_records_too() -> None:
    model, inputs = tiny_lm("llama"), left_padded()
    ids_BP, mask_BP = inputs["input_ids"], inputs["attention_mask"]
    assert (ids_BP == 0).any() and torch.equal((ids_BP != 0).long(), mask_BP), "padding is where the mask is 0"
    with Attached(model, policy_for(model, "token", "sample")) as knobs:
        out_BL = model.generate(ids_BP, max_new_tokens=8)
        inferred, stated = knobs.record(out_BL, ids_BP.shape[1]), knobs.record(out_BL, ids_BP.shape[1], mask_BP)
    assert torch.equal(inferred.logps_BT, stated.logps_BT) and inferred.logps_BT.isfinite().all()


def test_a_record_says_which_arguments_did_not_act(lm: nn.Module) -> None:
    announce.cache_clear()
    with Attached(lm, WARM, sampling_arguments="override") as knobs, pytest.warns(UserWarning, match="ignored"):
        out_BL = lm.generate(torch.tensor([[3, 5]]), max_new_tokens=4, temperature=0.3)
        assert knobs.record(out_BL, 2).ignored == ("temperature",)
        out_BL = lm.generate(torch.tensor([[3, 5]]), max_new_tokens=4)
        assert knobs.record(out_BL, 2).ignored == ()


@pytest.mark.parametrize("settings", [
    {"num_return_sequences": 2}, {"num_beams": 2}, {"stop_strings": ["w3"]}, {"repetition_penalty": 1.3}, {"max_time": 0.0},
    {"min_new_tokens": 4}, {"token_healing": True},
])  # fmt: skip
def test_rollouts_leave_out_what_the_models_config_would_do_to_rows(settings: dict[str, Any]) -> None:
    class Words:
        pad_token_id, eos_token_id = 0, 2

        def batch_decode(self, rows: Any, **kwargs: Any) -> list[str]:
            return ["" for _ in rows]

    model, prompts = tiny_lm("llama"), [Prompt("x", (3, 5, 9)), Prompt("y", (4, 8))]
    asked: Any = {"copies": 2, "max_new_tokens": 6, "batch_size": 4, "seed": 0}
    plain = roll_out(model, Words(), prompts, WARM, **asked)
    config = model.generation_config
    vars(config).update(settings)
    announce.cache_clear()
    with pytest.warns(UserWarning, match=f"Rollouts leave .*{next(iter(settings))}"):
        assert roll_out(model, Words(), prompts, WARM, **asked) == plain
    assert model.generation_config is config


@pytest.mark.parametrize("settings", [{"penalty_alpha": 0.6}, {"dola_layers": "high"}, {"token_healing": True}])
def test_ways_of_decoding_that_no_policy_follows_are_refused(lm: nn.Module, settings: dict[str, Any]) -> None:
    with Attached(lm, WARM), pytest.raises(DecodingError, match=f"{next(iter(settings))}=.* cannot follow token by token"):
        lm.generate(torch.tensor([[3, 5]]), max_new_tokens=4, **settings)
