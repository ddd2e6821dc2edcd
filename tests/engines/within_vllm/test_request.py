"""What a request may say beside a policy, and what is refused before it costs anything."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentknobs.engines.vllm.request import Request, left_out, read_request, row_of
from latentknobs.errors import ConfigError

KNOWN = {"mine": ("greedy", "sample"), "rule": ()}
PLAIN: dict[str, Any] = {
    "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "n": 1, "seed": None, "max_tokens": 9, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0, "logit_bias": None, "allowed_token_ids": None,
    "bad_words": [], "structured_outputs": None, "trace_decode_token_ids": None, "thinking_token_budget": None,
}  # fmt: skip


def params(extra: dict[str, Any] | None, **more: Any) -> Any:
    return SimpleNamespace(**PLAIN | {"extra_args": extra} | more)


def test_a_request_without_our_fields_is_none_of_our_business() -> None:
    for extra in (None, {}, {"theirs": 1}):
        assert read_request(params(extra, temperature=0.3, top_k=5), KNOWN) is None


def test_what_a_request_says() -> None:
    extra = {"latentknobs": "mine", "latentknobs_pick": "sample", "latentknobs_seed": 3, "latentknobs_row": 2,
             "latentknobs_samples": 8, "latentknobs_key": "k", "theirs": 1}  # fmt: skip
    assert read_request(params(extra), KNOWN) == Request("mine", "sample", 3, 2, 8, "k", max_tokens=9)
    assert read_request(params({"latentknobs": "rule"}, seed=5, top_k=-1), KNOWN) == Request("rule", seed=5, max_tokens=9)
    assert read_request(params({"latentknobs": "elsewhere"})) == Request("elsewhere", max_tokens=9), "names are not known yet"


@pytest.mark.parametrize("edit", [{"presence_penalty": 1.0}, {"repetition_penalty": 1.2}, {"min_tokens": 2},
                                  {"logit_bias": {3: 1.0}}, {"bad_words": ["x"]}, {"structured_outputs": "json"},
                                  {"thinking_token_budget": 0}])  # fmt: skip
def test_logits_that_vllm_changes_are_noticed(edit: dict[str, Any]) -> None:
    found = read_request(params({"latentknobs": "mine"}, **edit), KNOWN)
    assert found is not None and found.is_edited


MINE = {"latentknobs": "mine"}


@pytest.mark.parametrize(("extra", "more", "words"), [
    ({"latentknobs": "mein"}, {}, r"no adapter 'mein' on this server\. Did you mean \"mine\"\?"),
    ({"latentknobs": 3}, {}, "'latentknobs' is 3. Give the name"),
    ({"latentknobs": ""}, {}, "Give the name"),
    ({"latentknobs_seed": 3}, {}, "Give the name"),
    (MINE | {"latentknobs_sede": 3}, {}, r"no field 'latentknobs_sede'\. Did you mean \"latentknobs_seed\""),
    ({"latent_knobs": "mine"}, {}, r"no field 'latent_knobs'\. Did you mean \"latentknobs\""),
    (MINE | {"latentknobs_pick": "best"}, {}, "'latentknobs_pick' is 'best'. Give one of: greedy, sample"),
    ({"latentknobs": "rule", "latentknobs_pick": "sample"}, {}, "'rule' has no 'latentknobs_pick'"),
    (MINE | {"latentknobs_seed": "3"}, {}, "'latentknobs_seed' is '3'. Give a whole number"),
    (MINE | {"latentknobs_seed": True}, {}, "'latentknobs_seed' is True. Give a whole number"),
    (MINE | {"latentknobs_key": 3}, {}, "'latentknobs_key' is 3. Give text"),
    (MINE | {"latentknobs_key": "k" * 300}, {}, "300 characters"),
    (MINE | {"latentknobs_samples": 0}, {}, "'latentknobs_samples' is 0"),
    (MINE | {"latentknobs_samples": 2**63}, {}, "'latentknobs_samples' is 9223372036854775808. Give a whole number from 1 to"),
    (MINE | {"latentknobs_key": "k"}, {"n": 2}, "n=2, and 'latentknobs_key' would be the same"),
    (MINE | {"latentknobs_seed": 1}, {"n": 2}, "n=2, and 'latentknobs_seed'"),
    (MINE, {"temperature": 0.0}, "chooses how tokens are drawn, and for temperature=0. Leave temperature out"),
    (MINE, {"temperature": 0.7}, "temperature=0.7"), (MINE, {"top_p": 0.9}, "top_p=0.9"), (MINE, {"top_k": 40}, "top_k=40"),
    (MINE, {"min_p": 0.1}, "min_p=0.1"), (MINE, {"trace_decode_token_ids": [1]}, "brings its own tokens"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(extra: dict[str, Any], more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_request(params(extra, **more), KNOWN)


XARGS = {"vllm_xargs": MINE}


@pytest.mark.parametrize(("path", "body", "words"), [
    ("/v1/completions", XARGS | {"use_beam_search": True}, r"adapter 'mine'.*and for use_beam_search, which draws none\. Leave"),
    ("/invocations", XARGS | {"use_beam_search": True}, "use_beam_search"),
    ("/v1/completions", {"latentknobs": "mine"}, "'latentknobs' stands beside vllm_xargs"),
    ("/v1/completions", {"latent_knobs": "mine"}, "'latent_knobs' stands beside"),
    ("/v1/completions", {"LATENTKNOBS": "mine"}, "'LATENTKNOBS' stands beside"),
    ("/v1/chat/completions", XARGS | {"latentknobs_seed": 3}, "'latentknobs_seed' stands beside vllm_xargs"),
    ("/inference/v1/generate", XARGS, r"does not read vllm_xargs, which ask for the adapter 'mine'\. Write it into sampling"),
    ("/cohere/v2/chat", XARGS, "Send it to /v1/chat/completions"), ("/v1/systemone", XARGS, "nothing is drawn there"),
    ("/v1/completions", {"prompt": ["a", "b"], "vllm_xargs": MINE | {"latentknobs_key": "k"}}, "The request has 2 prompts, and"),
    ("/v1/chat/completions/batch", {"messages": [[], [], []], "vllm_xargs": MINE | {"latentknobs_key": "k"}}, "has 3 prompts"),
])  # fmt: skip
def test_what_vllm_would_leave_out_is_noticed(path: str, body: dict[str, Any], words: str) -> None:
    assert re.search(words, left_out(path, json.dumps(body).encode()) or "")


@pytest.mark.parametrize("body", [
    XARGS, XARGS | {"use_beam_search": False}, {"use_beam_search": True}, {"use_beam_search": True, "vllm_xargs": {"theirs": 1}},
    {"use_beam_search": True, "prompt": "latentknobs", "vllm_xargs": None}, [MINE], "latentknobs",
    {"prompt": [3, 4], "vllm_xargs": MINE | {"latentknobs_key": "k"}}, {"prompt": ["a", "b"], "vllm_xargs": MINE},
])  # fmt: skip
def test_everything_else_goes_on(body: Any) -> None:
    assert left_out("/v1/completions", json.dumps(body).encode()) is None
    assert left_out("/v1/completions", b"--form latentknobs use_beam_search\xff") is None


@given(st.lists(st.lists(st.integers(0, 2**31), max_size=5), unique_by=tuple, max_size=8))
def test_rows_tell_prompts_apart(prompts: list[list[int]]) -> None:
    rows = [row_of(prompt) for prompt in prompts]
    assert len(set(rows)) == len(rows) and all(0 <= row < 2**56 for row in rows)
    assert rows == [row_of(tuple(prompt)) for prompt in prompts]
