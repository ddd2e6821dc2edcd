"""The parts that need no vLLM: versions, names, what is refused before vLLM starts."""

from typing import Any

import pytest
import torch
from tiny_models import word_tokenizer

from latentknobs import entry_points
from latentknobs.engines.base import engine_of
from latentknobs.engines.vllm import policies
from latentknobs.engines.vllm.engine import response_of
from latentknobs.engines.vllm.progress import Traced, Traces
from latentknobs.engines.vllm.tap import Tap
from latentknobs.engines.vllm.versions import check_version
from latentknobs.engines.vllm.worker import first
from latentknobs.errors import ConfigError, DecodingError
from latentknobs.policies.names import policy_of


@pytest.mark.parametrize("good", ["0.32.0", "0.32.3+cpu"])
def test_tested_versions_pass(good: str) -> None:
    assert check_version(good) == good


@pytest.mark.parametrize("bad", ["0.31.4", "0.33.0", "1.0"])
def test_other_versions_are_refused_with_both_named(bad: str) -> None:
    with pytest.raises(ConfigError, match=rf"vLLM {bad}.*at least 0\.32 and below 0\.33"):
        check_version(bad)


def test_without_vllm_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "vllm" in entry_points.names("engine")
    monkeypatch.setattr("latentknobs.engines.vllm.versions.installed", lambda: None)
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        engine_of("vllm", None, None)


def test_second_logits_are_refused_by_the_name_of_the_knob() -> None:
    with pytest.raises(ConfigError, match="'g' cannot run in vLLM: its knob 'guidance_scale' reads second logits"):
        policies.register("g", {"": policy_of("constant:guidance_scale=1.5")}, "cpu")


def test_policies_are_described_with_what_tells_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_POLICIES", {})
    monkeypatch.setattr(policies, "KNOWN", {})
    policy = policy_of("uniform:temperature=0,1,level=every:4")
    policies.register("explore", {"": policy}, "cpu")
    found: dict[str, Any] = policies.described()["explore"]
    assert found["identity"] == {"greedy": policy.identity()} and found["picks"] == [] and found["level"] == "every:4"
    assert policies.find("explore", None).identity() == policy.identity() and policies.KNOWN == {"explore": ()}
    with pytest.raises(ConfigError, match=r"no policy 'other'.*Known: explore"):
        policies.find("other", None)


def test_the_tap_gives_the_rows_of_one_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentknobs.engines.vllm.tap.check_version", lambda: "0.32.0")
    tap, hidden, logits = Tap(), torch.ones(3, 2), torch.zeros(3, 5)
    tap.see(hidden, logits)
    with pytest.raises(DecodingError, match="samples 3 rows, and the LM head saw none"):
        tap.take(3)
    tap.is_wanted = lambda: True
    tap.see(hidden, logits)
    with pytest.raises(DecodingError, match="saw 3 hidden states"):
        tap.take(2)
    tap.is_edited = lambda: True
    tap.see(hidden, logits)
    logits.fill_(1)
    assert tap.take(3)[1].sum() == 0, "the LM's own logits, before vLLM changed them"


def test_a_response_that_the_policy_did_not_draw_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentknobs.engines.vllm.engine.check_version", lambda: "0.32.0")
    trace = {"ids": [3, 4], "options": [0, 1], "values": [[1.0], [0.5]], "logps": [-0.1, -0.2]}
    assert response_of([3, 4], trace, "x").logps == (-0.1, -0.2)
    for broken in (None, trace | {"ids": [3, 5]}):
        with pytest.raises(DecodingError, match="gave a response of 2 tokens"):
            response_of([3, 4], broken, "x")


def test_the_worker_that_samples_answers() -> None:
    assert first([[None, None], [{"ids": []}, None]]) == [{"ids": []}, None] and first([{}]) == {}


def test_choices_that_are_not_fetched_go_when_there_are_too_many_tokens() -> None:
    traces = Traces(most=9)
    for key, count in (("old", 4), ("mid", 4), ("new", 2)):
        trace = traces.begin(key)
        for position in range(count):
            trace[position] = Traced(position, 0, [1.0], -0.5)
    assert traces.take("mid")["ids"] == [0, 1, 2, 3] and traces.take("new")["options"] == [0, 0]  # type: ignore[index]
    assert traces.take("old") is None and traces.take("new") is None


def test_a_server_is_asked_for_the_policies_that_it_has(lm: torch.nn.Module) -> None:
    engine = engine_of("serve:http://127.0.0.1:9", lm, word_tokenizer())
    mine, other = policy_of("uniform:temperature=0,1"), policy_of("uniform:temperature=0,2")
    engine.known = {mine.identity(): ("explore", "")}  # type: ignore[attr-defined]
    engine.check(mine)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9 does not have this UniformPolicy.*level 'token'\. It has: explore"):
        engine.check(other)
