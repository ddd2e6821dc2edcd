"""What a request says: the policy that it names, and which of vLLM's own fields stand in the way.

A request asks for a policy in `vllm_xargs` over HTTP, in `SamplingParams.extra_args` in Python:

    latentknobs           name of an adapter or policy of the server; without it the request is vLLM's own business
    latentknobs_pick      greedy (default) or sample, of an adapter's options
    latentknobs_seed      decides what is drawn; default: the request's `seed`, or chance
    latentknobs_row       tells responses of one seed apart; default: a digest of the prompt
    latentknobs_samples   how many responses the prompt gets, for policies that read it
    latentknobs_key       under which choices and log-probabilities are kept for the client to fetch
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from latentknobs.errors import ConfigError, did_you_mean

PREFIX = "latentknobs"
KINDS: dict[str, type] = {"pick": str, "seed": int, "row": int, "samples": int, "key": str}
FIELDS = (PREFIX, *(f"{PREFIX}_{kind}" for kind in KINDS))
NEUTRAL = {"temperature": (1.0,), "top_p": (1.0,), "min_p": (0.0,), "top_k": (0, -1)}
EDITS = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0,
         "thinking_token_budget": None}  # fmt: skip
LONGEST_KEY = 256  # characters
DEAF = {  # routes of vLLM that generate and do not hand `vllm_xargs` on, and what to do instead
    "/cohere/v2/chat": "Send it to /v1/chat/completions",
    "/inference/v1/generate": "Write it into sampling_params.extra_args",
    "/generative_scoring": "Leave it out: nothing is drawn there",
    "/v1/systemone": "Leave it out: nothing is drawn there",
}


@dataclass(frozen=True)
class Request:
    """A request for a policy; equal ones may stand for each other."""

    policy: str
    pick: str | None = None  # None leaves it to the policy
    seed: int | None = None
    row: int | None = None  # seed, row: None where the request does not say
    samples: int = 1
    key: str | None = None
    max_tokens: int = 1  # most tokens of the response
    is_edited: bool = False  # whether vLLM changes its logits (penalties, bans, grammars) before the knobs act


def read_request(params: Any, known: Mapping[str, Sequence[str]] | None = None) -> Request | None:
    """The request for a policy in vLLM's `SamplingParams`; None where there is none.

    Args:
        known: names of policies and the picks of each; None where they are not known yet.

    Raises:
        ConfigError: an unknown field or name, a value of another kind, or a field beside it that also shapes the distribution.
    """
    extra = {key: value for key, value in (params.extra_args or {}).items() if _is_meant(key)}
    if not extra:
        return None
    for key in extra:
        if key not in FIELDS:
            raise ConfigError(f"There is no field {key!r}. {did_you_mean(key, FIELDS)}")
    fields = {key.removeprefix(PREFIX).removeprefix("_"): value for key, value in extra.items()}
    policy = fields.pop("", None)
    if not isinstance(policy, str) or not policy:
        raise ConfigError(f"The field {PREFIX!r} is {policy!r}. Give the name of one of the server's adapters.")
    for name, value in fields.items():
        if not isinstance(value, KINDS[name]) or isinstance(value, bool):
            kind = "a whole number" if KINDS[name] is int else "text"
            raise ConfigError(f"The field '{PREFIX}_{name}' is {value!r}. Give {kind}.")
    _check_fields(policy, fields, known)
    _check_neutral(policy, params)
    if params.n > 1 and (clash := sorted({"seed", "key"} & fields.keys())):
        raise ConfigError(
            f"The request has n={params.n}, and '{PREFIX}_{clash[0]}' would be the same for all of them. Leave it out, or send "
            f"{params.n} requests; the field `seed` gives each of n responses a seed of its own."
        )
    fields.setdefault("seed", params.seed)
    return Request(policy, max_tokens=params.max_tokens or 1, is_edited=_is_edited(params), **fields)


def left_out(path: str, body: bytes) -> str | None:
    """Why vLLM would leave out the policy that the body of a request names, or its choices; None where it does not."""
    if b"atent" not in body.lower():
        return None  # most requests: JSON of megabytes is not read twice
    try:
        fields = json.loads(body)
    except ValueError:
        return None  # vLLM says so
    if not isinstance(fields, dict):
        return None
    if stray := next(filter(_is_meant, fields), None):
        cure = DEAF.get(path, "Write it into vllm_xargs")
        return f"The field {stray!r} stands beside vllm_xargs, where vLLM does not read it. {cure}."
    extra = fields.get("vllm_xargs")
    if not isinstance(extra, dict) or not any(map(_is_meant, extra)):
        return None
    policy = extra.get(PREFIX)
    if instead := DEAF.get(path):
        return f"{path} does not read vllm_xargs, which ask for the adapter {policy!r}. {instead}."
    if fields.get("use_beam_search"):
        return (
            f"The request asks for the adapter {policy!r}, which chooses how tokens are drawn, and for use_beam_search, which "
            "draws none. Leave use_beam_search out (n responses are drawn with n), or leave the adapter out."
        )
    prompts = fields.get("messages" if path.endswith("/batch") else "prompt")
    if f"{PREFIX}_key" in extra and isinstance(prompts, list) and len(prompts) > 1 and not isinstance(prompts[0], int):
        return f"The request has {len(prompts)} prompts, and '{PREFIX}_key' would be the same for all of them. Send one each."
    return None


def _is_meant(key: str) -> bool:
    """Whether a field is ours, or means to be: misspelt ones must not be taken for another program's."""
    return key.lower().replace("_", "").replace("-", "").startswith(PREFIX[:-1])


def _check_fields(policy: str, fields: dict[str, Any], known: Mapping[str, Sequence[str]] | None) -> None:
    if known is not None and policy not in known:
        raise ConfigError(f"There is no adapter {policy!r} on this server. {did_you_mean(policy, known)}")
    picks = ("greedy", "sample") if known is None else known[policy]
    if "pick" in fields and fields["pick"] not in picks:
        if not picks:
            raise ConfigError(f"The policy {policy!r} has no '{PREFIX}_pick': leave it out.")
        raise ConfigError(f"The field '{PREFIX}_pick' is {fields['pick']!r}. Give one of: {', '.join(picks)}.")
    if not 1 <= fields.get("samples", 1) < 2**31:
        raise ConfigError(f"The field '{PREFIX}_samples' is {fields['samples']}. Give a whole number from 1 to 2,147,483,647.")
    if len(fields.get("key", "")) > LONGEST_KEY:
        raise ConfigError(f"The field '{PREFIX}_key' has {len(fields['key'])} characters. Give at most {LONGEST_KEY}.")


def _check_neutral(policy: str, params: Any) -> None:
    for name, neutral in NEUTRAL.items():
        if (value := getattr(params, name)) not in neutral:
            raise ConfigError(
                f"The request asks for the adapter {policy!r}, which chooses how tokens are drawn, and for {name}={value:g}. "
                f"Leave {name} out ({name}={neutral[0]:g} changes nothing), or leave the adapter out."
            )
    if getattr(params, "trace_decode_token_ids", None):
        raise ConfigError(f"The request asks for the adapter {policy!r} and brings its own tokens. Leave one of them out.")


def _is_edited(params: Any) -> bool:
    lists = ("logit_bias", "allowed_token_ids", "bad_words", "structured_outputs")
    return any(getattr(params, name) != neutral for name, neutral in EDITS.items()) or any(getattr(params, n) for n in lists)


def row_of(prompt: Sequence[int]) -> int:
    """The row of a request that does not say one: the same for the same prompt, and another for another."""
    digest = blake2b(b"".join(int(token).to_bytes(8, "little", signed=True) for token in prompt), digest_size=7)
    return int.from_bytes(digest.digest(), "little")
