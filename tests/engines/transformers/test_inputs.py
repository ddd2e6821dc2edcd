"""What a caller passes to `generate` and `record`: refused in our words, naming it, and the model is as it was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_attach_manners import state_of
from tiny_models import tiny_lm
from transformers import GenerationConfig

import latentknobs as lk
from latentknobs.engines.transformers import Attached
from latentknobs.errors import ConfigError, DecodingError
from latentknobs.policies import ConstantPolicy

COLD = ConstantPolicy(lk.KnobSpace.of({"temperature": [0.0]}), 0)
IDS = torch.tensor([[3, 5, 9, 7]])


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_lm("llama")


@pytest.mark.parametrize(
    ("prompt", "settings", "says"),
    [
        ([[3, 5]], {}, "The prompt is a list, not a tensor"),
        (IDS[0], {}, r"The prompt is torch.int64 \(4,\)"),
        (IDS.float(), {}, r"The prompt is torch.float32 \(1, 4\)"),
        (IDS[:, :0], {}, r"has shape \(1, 0\): there are no tokens"),
        (IDS + 10**6, {}, r"holds the id 1000009, and the model has ids 0 to \d+"),
        (IDS - 4, {}, "holds the id -1"),
        (IDS, {"attention_mask": torch.ones(1, 2)}, r"attention_mask is \(1, 2\), and the prompt has \(1, 4\)"),
        (IDS, {"max_new_tokens": "10"}, r"generate\(max_new_tokens='10'\): give a whole number from 1"),
        (IDS, {"max_new_tokens": 0}, r"generate\(max_new_tokens=0\)"),
        (IDS, {"num_beams": 0}, r"generate\(num_beams=0\)"),
        (IDS, {"num_return_sequences": 0}, r"generate\(num_return_sequences=0\)"),
        (IDS, {"generation_config": "greedy"}, "generation_config='greedy' is not a GenerationConfig"),
        (IDS, {"generation_config": {"top_k": 1}}, "is not a GenerationConfig"),
        (IDS, {"cache_implementation": "bogus"}, r"could not begin: Invalid `cache_implementation` \(bogus\)"),
        (IDS, {"cache_implementation": "quantized"}, "could not begin: .*(optimum-quanto|quantiz)"),
        (IDS, {"eos_token_id": "x"}, "could not begin: .* Change that argument, or leave it out"),
        (IDS, {"stop_strings": ["a"]}, "could not begin: .*tokenizer"),
        (IDS, {"tempreture": 1.0}, "could not begin: .*tempreture"),
    ],
)
def test_what_generate_cannot_use(lm: Any, prompt: Any, settings: dict[str, Any], says: str) -> None:
    state = state_of(lm)
    with Attached(lm, COLD) as knobs:
        with pytest.raises(DecodingError, match=says):
            lm.generate(prompt, **({"max_new_tokens": 3} | settings))
        out_BL = lm.generate(IDS, max_new_tokens=3)  # nothing of the failed call is left
        assert knobs.record(out_BL, 4).option_BT.tolist() == [[0, 0, 0]]
    assert state_of(lm) == state


@pytest.mark.parametrize(
    ("sequences", "length", "mask", "says"),
    [
        (IDS, 5, None, "prompt_length=5 does not fit sequences of 4 columns"),
        (IDS, -1, None, "prompt_length=-1"),
        (IDS[0], 2, None, r"record\(sequences\) is torch.int64 \(4,\)"),
        (IDS.tolist(), 2, None, r"record\(sequences\) is a list"),
        (IDS + 10**6, 2, None, "holds the id 1000009"),
        (IDS, 2, torch.ones(1, 4), r"attention_mask is \(1, 4\), and the prompt has \(1, 2\)"),
    ],
)
def test_what_record_cannot_read(lm: Any, sequences: Any, length: int, mask: Any, says: str) -> None:
    with Attached(lm, COLD) as knobs, pytest.raises(DecodingError, match=says):
        knobs.record(sequences, length, mask)


def test_no_prompt_no_config_and_rows_in_a_list(lm: Any) -> None:
    own = lm.generation_config
    with Attached(lm, COLD) as knobs:
        assert lm.generate(max_new_tokens=3, bos_token_id=3)[0, 0] == 3  # begins by itself
        assert torch.equal(lm.generate(IDS, generation_config=None, max_new_tokens=3), lm.generate(IDS, max_new_tokens=3))
        knobs.rows = [7]
        lm.generate(IDS, max_new_tokens=2)
        knobs.rows = [7, 8]
        with pytest.raises(DecodingError, match=r"`rows` of the attached policy have shape \(2,\), and the batch \(1,\)"):
            lm.generate(IDS, max_new_tokens=2)
        knobs.rows = None
        with pytest.raises(DecodingError, match="not a GenerationConfig"):
            lm.generate(IDS, generation_config=SimpleNamespace(num_beams=1))
        assert lm.generate(IDS, generation_config=GenerationConfig(max_new_tokens=2)).shape[1] > 4
    assert lm.generation_config is own


def test_an_error_after_the_first_step_stays_what_it_is(lm: Any) -> None:
    def failing(ids: Any, scores: Any, **others: Any) -> Any:
        raise ValueError("a criterion's own")

    with Attached(lm, COLD), pytest.raises(ValueError, match="a criterion's own"):
        lm.generate(IDS, max_new_tokens=3, stopping_criteria=[failing])


@pytest.mark.parametrize(
    "settings",
    [{"seed": "x"}, {"seed": 1.5}, {"seed": None}, {"seed": True}, {"sampler": "mine"}, {"sampling_arguments": "maybe"}],
)
def test_settings_of_attached_that_it_does_not_know(lm: Any, settings: dict[str, Any]) -> None:
    state = state_of(lm)
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}="):
        Attached(lm, COLD, **settings)
    assert state_of(lm) == state
