"""Profiles: which servers take which knobs, under which names, and in which order they apply them.

A server's own defaults (of its command line, or of the model's `generation_config.json`) must not act on top of a policy: every
field of a profile is in every request, at its neutral value where nothing else was chosen. What a profile cannot express is
refused by name.

Sources: vLLM 0.32 `v1/sample/sampler.py` and `sampling_params.py`; SGLang `srt/layers/sampler.py`; the README of llama.cpp's
server; OpenAI's API reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from latentknobs.errors import ConfigError, did_you_mean
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import CategoricalPolicy, Policy


@dataclass(frozen=True)
class Field:
    """How a server takes a knob."""

    name: str  # of the field in a request
    neutral: float  # what is sent for the knob's neutral value
    least: float
    most: float  # least, most: of other values. Below `least` only 0 is taken, and only of a temperature
    strong: float  # a value of the knob that shows within few tokens whether the server heeds the field
    is_cold: bool = False  # whether it shows at temperature 0, because the knob changes which token is the best one
    along: Mapping[str, Any] = field(default_factory=dict)  # further fields where the value is not neutral


@dataclass(frozen=True)
class Profile:
    """What a kind of server takes.

    Attributes:
        owner: what it says in `owned_by` of its list of models; empty if that tells nothing.
        fields: by knob.
        order: in which it applies them, a name of `knobs.space.ORDERS`; None: the request says it, by names in `samplers`.
        exclusive: knobs that it does not apply in an order that one can rely on.
        others: further fields of every request, so that nothing else acts.
        reports: fields of rollouts, so that the answer has token ids and log-probabilities.
        ids: where an answer holds token ids: `token_ids`, `content` of the log-probabilities; None: text is tokenized again.
        prompts: how prompts are sent.
        stops: the field of the tokens that end a response; None where there is none.
        is_steady: whether, in float32, other requests of the moment change no text; elsewhere one at a time has to be sent.
    """

    name: str
    owner: str
    fields: Mapping[str, Field]
    order: Literal["transformers", "vllm"] | None
    others: Mapping[str, Any]
    reports: Mapping[str, Any]
    ids: Literal["token_ids", "content"] | None
    prompts: Literal["ids", "text"] = "ids"
    stops: str | None = None
    exclusive: frozenset[str] = frozenset()
    samplers: Mapping[str, str] = field(default_factory=dict)
    is_steady: bool = False

    @property
    def neutral(self) -> dict[str, Any]:
        """All fields, with which nothing acts."""
        return dict(self.others) | {one.name: one.neutral for one in self.fields.values()}

    def check(self, policy: Policy) -> None:
        """Refuses a policy whose knobs, order or options it cannot express: a ConfigError names what."""
        space = policy.space
        for name in space.names:
            if name not in self.fields:
                raise ConfigError(
                    f"Servers of profile {self.name!r} have no field for the knob {name!r}. They take "
                    f"{', '.join(self.fields)}: choose among these, or decode with engine='transformers'."
                )
        if self.order and KnobSpace.of(*space.knobs, order=self.order).names != space.names:
            theirs = ", ".join(KnobSpace.of(*space.knobs, order=self.order).names)
            raise ConfigError(
                f"Servers of profile {self.name!r} apply {theirs} in this order, and the space applies "
                f"{', '.join(space.names)}, which keeps other tokens. Train with order={self.order!r}."
            )
        if len(both := self.exclusive.intersection(space.names)) > 1:
            raise ConfigError(
                f"Servers of profile {self.name!r} apply {' and '.join(sorted(both))} in an order that depends on the other "
                "requests of the moment. Choose one of them."
            )
        for option in space.options if isinstance(policy, CategoricalPolicy) else ():
            self.body(space, tuple(option.values()))

    def body(self, space: KnobSpace, values: tuple[float, ...]) -> dict[str, Any]:
        """The fields of a request whose knobs have these values, in order; ConfigError if the server does not take one."""
        found = self.neutral
        for knob, value in zip(space.knobs, values, strict=True):
            one = self.fields[knob.name]
            if value != knob.neutral:
                if not (one.least <= value <= one.most or (value == 0 and knob.name == "temperature")):
                    raise ConfigError(
                        f"{knob.name} {value:g} is not a value that servers of profile {self.name!r} take: it must lie between "
                        f"{one.least:g} and {one.most:g}. Change the knob's grid, or the policy's settings."
                    )
                found |= {one.name: int(value) if isinstance(one.neutral, int) else float(value)} | dict(one.along)
        if self.order is None:
            found["samplers"] = [self.samplers.get(name, name) for name in space.names]
        return found


def profile_of(name: str) -> Profile:
    """The profile of a name; ConfigError if there is none."""
    if name not in PROFILES:
        raise ConfigError(f"There is no profile {name!r} of servers. {did_you_mean(name, PROFILES)}")
    return PROFILES[name]


LARGEST_K = 2**31 - 1
_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
_TEMPERATURE = Field("temperature", 1.0, 0.01, 2.0, strong=0.0)  # vLLM raises smaller ones to .01
_TOP_P = Field("top_p", 1.0, 1e-6, 1.0, strong=0.05)
_MIN_P = Field("min_p", 0.0, 0.0, 1.0, strong=0.9)
_REPEAT = Field("repetition_penalty", 1.0, 0.01, 2.0, strong=2.0, is_cold=True)

PROFILES: dict[str, Profile] = {
    "vllm": Profile(
        "vllm", "vllm", order="vllm", ids="token_ids", stops="stop_token_ids", is_steady=True,
        fields={
            "temperature": _TEMPERATURE, "top_k": Field("top_k", 0, 1, LARGEST_K, strong=1), "top_p": _TOP_P, "min_p": _MIN_P,
            "repetition_penalty": _REPEAT,
        },
        others=_PENALTIES | {"use_beam_search": False}, reports={"logprobs": 0, "return_token_ids": True},
    ),
    "sglang": Profile(
        "sglang", "sglang", order="transformers", ids=None, stops="stop_token_ids", exclusive=frozenset({"top_k", "top_p"}),
        fields={
            "temperature": _TEMPERATURE, "top_k": Field("top_k", -1, 1, LARGEST_K, strong=1), "top_p": _TOP_P, "min_p": _MIN_P,
        },
        others=_PENALTIES | {"repetition_penalty": 1.0}, reports={"logprobs": 1},
    ),
    "llama.cpp": Profile(
        "llama.cpp", "llamacpp", order=None, ids="content", samplers={"typical_p": "typ_p", "xtc_threshold": "xtc"},
        fields={
            "temperature": Field("temperature", 1.0, 0.01, 100.0, strong=0.0),
            "top_k": Field("top_k", 0, 1, LARGEST_K, strong=1), "top_p": _TOP_P, "min_p": _MIN_P,
            "typical_p": Field("typical_p", 1.0, 1e-6, 1.0, strong=0.05),
            "top_n_sigma": Field("top_n_sigma", -1.0, 1e-6, 100.0, strong=0.01),
            "xtc_threshold": Field("xtc_threshold", 1.0, 0.0, 0.5, strong=0.02, is_cold=True, along={"xtc_probability": 1.0}),
        },
        others=_PENALTIES | {
            "repeat_penalty": 1.0, "dry_multiplier": 0.0, "dynatemp_range": 0.0, "mirostat": 0, "xtc_probability": 0.0,
            "cache_prompt": False,  # a prompt from the cache gives other last bits
        },
        reports={"logprobs": 1},
    ),
    "openai": Profile(
        "openai", "", order="transformers", ids=None, prompts="text", fields={"temperature": _TEMPERATURE, "top_p": _TOP_P},
        others=_PENALTIES, reports={"logprobs": 0},
    ),
}  # fmt: skip
"""By name."""
