"""`attach` as a guest: it refuses what it cannot honour, leaves training alone, and gives the model back as it was."""

import pytest
import torch
from decoding_oracle import SPACE, left_padded, policy_for
from tiny_models import STOPS
from torch import nn
from transformers import GenerationConfig

from latentknobs import KnobSpace
from latentknobs.engines.transformers import Attached
from latentknobs.engines.transformers.settings import CHOSEN, REFUSED, SHAPING
from latentknobs.errors import DecodingError
from latentknobs.heads.segmenters import Every, WholeResponse
from latentknobs.policies import ConstantPolicy, UniformPolicy

WARM = ConstantPolicy(KnobSpace.of({"temperature": [1.0]}), 0)
POISON = {
    "do_sample": False,
    "temperature": 0.6,
    "top_k": 50,
    "top_p": 0.9,
    "min_p": 0.2,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.1,
}


def state_of(model: nn.Module) -> tuple[object, ...]:
    """Everything about a model that attaching could leave behind."""
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._forward_hooks_with_kwargs))
        for name, module in model.named_modules()
    ]
    return (
        hooks,
        sorted(vars(model)),
        id(model.generation_config),
        model.generation_config.to_dict(),
        getattr(model.generate, "__func__", model.generate),
    )


def poisoned(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> GenerationConfig:
    config = GenerationConfig(**POISON, pad_token_id=0, eos_token_id=STOPS)
    monkeypatch.setattr(model, "generation_config", config)
    return config


def test_defaults_of_the_generation_config_are_neutralised_and_restored(lm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    with Attached(lm, WARM):
        clean_BL = lm.generate(**left_padded(), max_new_tokens=8)
    config = poisoned(lm, monkeypatch)
    torch.manual_seed(0)
    with Attached(lm, WARM):
        assert lm.generation_config is config, "it is replaced during a call only"
        assert torch.equal(lm.generate(**left_padded(), max_new_tokens=8), clean_BL)
    assert lm.generation_config is config
    assert {name: getattr(config, name) for name in POISON} == POISON


@pytest.mark.parametrize("positional", [False, True])
def test_a_generation_config_given_to_generate_is_neutralised_too(lm: nn.Module, positional: bool) -> None:
    config = GenerationConfig(**POISON, max_new_tokens=8)
    ids_BL = torch.arange(3, 23).unsqueeze(1)
    torch.manual_seed(0)
    with Attached(lm, WARM):
        clean_BL = lm.generate(ids_BL, max_new_tokens=8)
        torch.manual_seed(0)
        out_BL = lm.generate(ids_BL, config) if positional else lm.generate(ids_BL, generation_config=config)
    assert torch.equal(out_BL, clean_BL)
    assert config.temperature == 0.6 and config.top_k == 50, "the caller's own object is not touched"


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", 0.7), ("top_p", 0.9), ("top_k", 50), ("min_p", 0.05), ("typical_p", 0.9), ("epsilon_cutoff", 0.01),
])  # fmt: skip
def test_a_sampling_setting_on_top_of_the_policy_is_refused(lm: nn.Module, name: str, value: float) -> None:
    with (
        Attached(lm, policy_for(lm, "token", "greedy")),
        pytest.raises(DecodingError, match=rf"generate\({name}={value}\).*temperature, top_p.*Leave {name} out, or detach"),
    ):
        lm.generate(**left_padded(), max_new_tokens=2, **{name: value})


def test_neutral_settings_are_welcome(lm: nn.Module) -> None:
    with Attached(lm, WARM):
        assert lm.generate(**left_padded(), max_new_tokens=2, temperature=1.0, top_k=0, top_p=1.0, min_p=None).shape[0] == 3
        assert lm.generate(**left_padded(), max_new_tokens=2, temperature=None, top_k=None, top_p=None).shape[0] == 3


def test_attaching_twice_is_refused_and_leaves_the_first_at_work(lm: nn.Module) -> None:
    with Attached(lm, WARM) as first:
        with pytest.raises(DecodingError, match=r"already has a policy attached\. Call detach"):
            Attached(lm, WARM)
        lm.generate(**left_padded(), max_new_tokens=2)
        assert first.option_BT.shape[0] == 3
    with Attached(lm, WARM):
        pass


def test_beam_search_without_a_cache_is_refused_where_rows_carry_options(lm: nn.Module) -> None:
    with Attached(lm, UniformPolicy(SPACE, WholeResponse())):
        with pytest.raises(DecodingError, match=r"Beam search without a cache.*level 'sequence'.*use_cache=True"):
            lm.generate(**left_padded(), max_new_tokens=2, num_beams=2, use_cache=False)
        with pytest.raises(DecodingError, match="Beam search"):
            lm.generate(**left_padded(), generation_config=GenerationConfig(num_beams=2, max_new_tokens=2, use_cache=False))
    with Attached(lm, policy_for(lm, "token", "greedy")):
        assert lm.generate(**left_padded(), max_new_tokens=3, num_beams=2, use_cache=False).shape[0] == 3


def test_options_before_any_generate_are_an_error(lm: nn.Module) -> None:
    with Attached(lm, WARM) as knobs, pytest.raises(DecodingError, match="Nothing was generated yet"):
        _ = knobs.option_BT


def test_detach_gives_the_model_back_exactly(lm: nn.Module) -> None:
    before = state_of(lm)
    logits_BSV = lm(**left_padded()).logits
    knobs = Attached(lm, WARM)
    assert state_of(lm) != before
    lm.generate(**left_padded(), max_new_tokens=3)
    knobs.detach()
    assert state_of(lm) == before
    assert torch.equal(lm(**left_padded()).logits, logits_BSV)
    knobs.detach()
    assert state_of(lm) == before, "detaching twice is harmless"


def test_an_old_handle_cannot_detach_a_newer_policy(lm: nn.Module) -> None:
    old = Attached(lm, WARM)
    old.detach()
    with Attached(lm, WARM) as new:
        old.detach()
        lm.generate(**left_padded(), max_new_tokens=2)
        assert new.option_BT.shape[0] == 3


def test_an_exception_inside_the_block_still_detaches(lm: nn.Module) -> None:
    before = state_of(lm)
    with pytest.raises(KeyError), Attached(lm, WARM):
        raise KeyError("anything")
    assert state_of(lm) == before


def test_an_exception_inside_generate_leaves_a_working_attachment(lm: nn.Module) -> None:
    before = state_of(lm)
    policy = UniformPolicy(SPACE, Every(1))
    with Attached(lm, policy) as knobs:
        with pytest.raises(Exception, match="max_new_tokens"):
            lm.generate(**left_padded(), max_new_tokens=-1)
        lm.generate(**left_padded(), max_new_tokens=2)
        assert knobs.option_BT.shape[0] == 3
    assert state_of(lm) == before


def test_a_model_without_output_embeddings_is_refused_untouched(lm: nn.Module) -> None:
    body = lm.model
    names = sorted(vars(body))
    with pytest.raises(ValueError, match=r"LlamaModel has no output embeddings\. latentknobs needs a causal LM"):
        Attached(body, WARM)
    assert sorted(vars(body)) == names


def test_the_loss_of_labels_and_its_logits_are_untouched(lm: nn.Module) -> None:
    inputs = left_padded()
    labels_BL = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    plain = lm(**inputs, labels=labels_BL)
    with Attached(lm, policy_for(lm, "token", "greedy")):
        attached = lm(**inputs, labels=labels_BL)
    assert torch.equal(attached.loss, plain.loss) and torch.equal(attached.logits, plain.logits)


def test_logits_inside_the_prompt_are_untouched(lm: nn.Module) -> None:
    plain_BSV = lm(**left_padded()).logits
    with Attached(lm, policy_for(lm, "token", "greedy")):
        attached_BSV = lm(**left_padded()).logits
    assert torch.equal(attached_BSV[:, :-1], plain_BSV[:, :-1])
    assert not torch.equal(attached_BSV[:, -1], plain_BSV[:, -1])


# lengths, ends, beams, drafts, caches, outputs: they act
OTHER = frozenset({
    "max_length", "max_new_tokens", "max_time", "stop_strings", "early_stopping", "length_penalty", "num_beams",
    "num_return_sequences", "diversity_penalty", "low_memory", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "prefill_chunk_size", "compile_config", "disable_compile", "continuous_batching_config",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
    "transformers_version",
})  # fmt: skip


def test_every_setting_of_a_generation_config_has_one_group() -> None:
    groups = [*CHOSEN, *SHAPING, *REFUSED, *OTHER]
    assert len(set(groups)) == len(groups)
    assert {name for name in vars(GenerationConfig()) if not name.startswith("_")} <= set(groups)
