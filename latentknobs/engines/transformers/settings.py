"""Every setting of `generate`, and what becomes of it while a policy is attached: the one place that decides.

| group | in the model's generation config | in a config passed to the call | written in the call |
|---|---|---|---|
| `CHOSEN`: what policies choose | off | off | refused, or off with `sampling_arguments="override"` |
| `SHAPING`: changes the distribution after the policy | off | acts, and `record` refuses | acts, and `record` refuses |
| `REFUSED`: decodes in a way that no policy can follow | off | refused | refused |
| all others: lengths, ends, beams, drafts, caches, outputs | acts | acts | acts |

"Off" is announced once. Rollouts take nothing of the model's config but the ids of its special tokens and its kind of cache.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any, Literal

from latentknobs.errors import DecodingError

SamplingArguments = Literal["refuse", "override"]
CHOSEN: dict[str, Any] = {
    "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None, "guidance_scale": None,
}  # fmt: skip
SHAPING: dict[str, Any] = {
    "min_length": 0, "min_new_tokens": None, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "sequence_bias": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "watermarking_config": None, "renormalize_logits": False,
    "remove_invalid_values": False,
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "token_healing": False, "use_mtp": None, "penalty_alpha": None, "dola_layers": None, "num_beam_groups": 1,
    "constraints": None, "force_words_ids": None,
}  # fmt: skip
ROLLOUTS = (
    "pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "cache_implementation", "cache_config", "disable_compile",
)  # fmt: skip


def setting(name: str, kwargs: dict[str, Any], configs: Iterable[Any], default: Any) -> Any:
    """A setting as `generate` reads it: from the call, else from its generation config, else from the model's own."""
    values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), default)


def for_model(config: Any) -> Any:
    """A copy of a model's generation config in which nothing changes what the policy chooses."""
    from transformers import GenerationConfig

    config = GenerationConfig() if config is None else config  # of a model that has none
    off = {name: value for group in (CHOSEN, SHAPING, REFUSED) for name, value in group.items()}
    if found := _acting(config, off):
        announce(
            f"While a policy is attached, {', '.join(found)} of the model's generation config {_are(found)} off: "
            "the policy alone chooses the distribution. What you want on top of it, pass to generate(...)."
        )
    return _with(config, off)


@contextmanager
def rollout_settings(model: Any) -> Iterator[None]:
    """Within the block, the model's generation config is what rollouts use of it."""
    own = model.generation_config
    model.generation_config = for_rollouts(own)
    try:
        yield
    finally:
        model.generation_config = own


def for_rollouts(config: Any) -> Any:
    """A model's generation config as rollouts use it: special tokens and the kind of cache, and nothing else."""
    from transformers import GenerationConfig

    kept = {name: value for name in ROLLOUTS if (value := getattr(config, name, None)) is not None}
    others = {"num_beams": 1, "num_return_sequences": 1, "stop_strings": None, "max_time": None}
    if found := _acting(config, others | SHAPING | REFUSED):
        announce(
            f"Rollouts leave {', '.join(found)} of the model's generation config out: one response is sampled for each row, from "
            "the distribution that the policy chooses."
        )
    return GenerationConfig(**kept)


def for_call(config: Any) -> Any:
    """A copy of a config that a caller passes, without what policies choose; DecodingError for a way that none can follow."""
    from transformers import GenerationConfig

    if config is None:
        return None
    if not isinstance(config, GenerationConfig):
        raise DecodingError(f"generation_config={config!r:.80} is not a GenerationConfig. Pass one, or arguments instead.")
    _refuse_ways({name: getattr(config, name, None) for name in REFUSED})
    return _with(config, CHOSEN)


def check_arguments(
    kwargs: dict[str, Any], names: tuple[str, ...], sampling_arguments: SamplingArguments, *, beams: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of a call of `generate` that remain beside a policy, and the names of those that do not.

    DecodingError if one would act on top of the policy, which chooses the knobs `names`, or asks for what no policy can follow.
    With several `beams`, do_sample decides whether the best are taken or drawn.
    """
    _refuse_ways({name: kwargs[name] for name in REFUSED if name in kwargs})
    neutral = CHOSEN | ({"do_sample": kwargs.get("do_sample")} if beams > 1 else {})
    acting = {name: kwargs[name] for name in CHOSEN if name in kwargs and kwargs[name] not in (neutral[name], None)}
    if not acting:
        return kwargs, ()
    if sampling_arguments == "refuse":
        name, value = next(iter(acting.items()))
        raise DecodingError(
            f"generate({name}={value!r}) would act on top of the attached policy, which already chooses {', '.join(names)}. "
            f"Leave {name} out, or detach the policy; for a client that always passes it, attach with "
            "sampling_arguments='override'."
        )
    announce(f"{', '.join(acting)} in a call of generate {_are(list(acting))} ignored: the attached policy chooses instead.")
    return {name: value for name, value in kwargs.items() if name not in acting}, tuple(acting)


@cache
def announce(sentence: str) -> None:
    """Warns, once in a process for each sentence."""
    warnings.warn(sentence, stacklevel=4)


def _refuse_ways(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value not in (None, REFUSED[name]):
            raise DecodingError(
                f"{name}={value!r} decodes in a way that an attached policy cannot follow token by token. Leave {name} out, or "
                "detach the policy."
            )


def _acting(config: Any, off: dict[str, Any]) -> list[str]:
    """Settings that do something, as users write them; not do_sample=False and top_k=50, which transformers sets by itself."""
    found = {name: getattr(config, name, None) for name in off}
    acting = {name: value for name, value in found.items() if value is not None and value != off[name]}
    return [f"{name}={value!r}" for name, value in acting.items() if (name, value) not in (("do_sample", False), ("top_k", 50))]


def _with(config: Any, values: dict[str, Any]) -> Any:
    copy = deepcopy(config)
    for name, value in values.items():
        if name in CHOSEN or hasattr(copy, name):
            setattr(copy, name, value)
    return copy


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
