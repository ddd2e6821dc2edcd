"""Rollouts over HTTP, from a real server of the packaged LM that fails in every way that servers do."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from completions_server import CompletionsServer, Faults, serving

import latentknobs as lk
from latentknobs import testbed
from latentknobs.config import TrainConfig
from latentknobs.engines.base import engine_of
from latentknobs.engines.openai import OpenAIEngine
from latentknobs.engines.record import record_of
from latentknobs.engines.served import measure_drift
from latentknobs.errors import ConfigError, EngineError
from latentknobs.heads.option_head import OptionHead
from latentknobs.heads.segmenters import Every, WholeResponse
from latentknobs.knobs.space import KnobSpace
from latentknobs.policies import HeadPolicy, Policy, UniformPolicy, reads
from latentknobs.testing import EngineConformance

MODEL, TOKENIZER = testbed.load_model(), testbed.load_tokenizer()
PROMPTS = [TOKENIZER(text)["input_ids"] for text in ("Once upon a time", "2 + 3 =", "Tom had a", "Lily saw a big")]
SPACE = KnobSpace.of("temperature:0,0.7,1.5", "top_k:0,3", "top_p:0.6,1", order="vllm")


@pytest.fixture(scope="module")
def server() -> Iterator[CompletionsServer]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults(server: CompletionsServer) -> None:
    server.faults, server.finished, server.bodies = Faults(), 0, []


def engine(server: CompletionsServer, settings: str = "", profile: str = "vllm") -> OpenAIEngine:
    found = engine_of(f"{profile}:{server.url},retries=2{settings}", MODEL, TOKENIZER)
    assert isinstance(found, OpenAIEngine)
    return found


def uniform(*knobs: Any, **settings: Any) -> Policy:
    return UniformPolicy(KnobSpace.of(*knobs, **settings) if knobs else SPACE, WholeResponse())


class TestConformance(EngineConformance):
    @pytest.fixture(autouse=True)
    def over_http(self, server: CompletionsServer) -> None:
        type(self).engine = engine(server)


def test_a_name_with_an_address_is_the_engine_openai_and_its_key_has_no_address(server: CompletionsServer) -> None:
    one, other = engine(server), engine_of("openai:concurrency=3,url=http://elsewhere:8000,profile=vllm", MODEL, TOKENIZER)
    assert one.identity == other.identity == "openai:profile=vllm"
    assert engine(server, ",served=testbed").identity != one.identity
    assert TrainConfig(engine="llama.cpp:http://localhost:8080").engine.startswith("llama.cpp")


def test_a_head_reads_prompts_here_and_every_field_is_sent(server: CompletionsServer) -> None:
    torch.manual_seed(0)
    policy = HeadPolicy(OptionHead(SPACE, 192), SPACE, WholeResponse(), pick="sample")
    one, prompts = engine(server), PROMPTS * 5
    found = one.sample(prompts, policy, max_new_tokens=9, seed=6)
    ids = [row.ids for row in found]
    record = record_of(policy, 6, prompts, ids, one.observe(prompts, ids, reads(policy)))
    assert record.option_BT is not None
    assert len({row.options[0] for row in found if row.options}) > 2
    for b, row in enumerate(found):
        assert row.options == tuple(record.option_BT[b, : len(row.ids)].tolist())
        assert row.logps == pytest.approx(record.logps_BT[b, : len(row.ids)].tolist(), abs=1e-4)
    fields = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
    assert all(fields <= body.keys() and body["min_p"] == 0 for body in server.bodies)
    assert len({body["seed"] for body in server.bodies[-20:]}) == 20
    drift = measure_drift(one, SPACE, prompts, found)
    assert drift.compared == sum(map(len, ids)) and drift.largest < 1e-3 and drift.outside == 0


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "min_p"])
def test_a_server_that_ignores_a_field_is_found_out_before_the_first_rollout(server: CompletionsServer, field: str) -> None:
    server.faults.ignores = {field}
    grid = {"temperature": "0.5,1", "top_k": "0,3", "top_p": "0.5,1", "min_p": "0,0.1"}[field]
    with pytest.raises(EngineError, match=f"ignores the field '{field}'"):
        engine(server).sample(PROMPTS, uniform(f"{field}:{grid}"), max_new_tokens=4, seed=0)


def test_a_field_whose_effect_does_not_show_is_named(server: CompletionsServer, capsys: pytest.CaptureFixture[str]) -> None:
    engine(server).sample(PROMPTS[1:2], uniform("repetition_penalty:1,1.2"), max_new_tokens=2, seed=0)
    assert "whether it heeds repetition_penalty does not show" in capsys.readouterr().err


def test_log_probabilities_of_the_model_itself_are_recognised(server: CompletionsServer) -> None:
    server.faults.raw = True
    one = engine(server)
    found = one.sample(PROMPTS, uniform(), max_new_tokens=8, seed=0)
    assert one.logps == "model"
    assert measure_drift(one, SPACE, PROMPTS, found).largest < 1e-3


def test_another_model_is_refused(server: CompletionsServer) -> None:
    server.faults.shift = -2.0
    with pytest.raises(EngineError, match=r"1\.\d+ nats away.*Serve the same weights"):
        engine(server).sample(PROMPTS, uniform(), max_new_tokens=4, seed=0)
    drifted = engine(server, ",probe=false")
    found = drifted.sample(PROMPTS, uniform("temperature:0.7,1.5"), max_new_tokens=4, seed=0)
    assert "does the engine run the same weights?" in str(
        measure_drift(drifted, KnobSpace.of("temperature:0.7,1.5"), PROMPTS, found)
    )


def test_what_passes_is_tried_again(server: CompletionsServer) -> None:
    whole = engine(server).sample(PROMPTS, uniform(), max_new_tokens=4, seed=0)
    server.faults.statuses = [429, 500, 503]
    assert engine(server, ",retries=4").sample(PROMPTS, uniform(), max_new_tokens=4, seed=0) == whole


@pytest.mark.parametrize(("status", "what"), [(400, "refused a request with status 400.*not now"), (401, "OPENAI_API_KEY")])
def test_what_stays_wrong_ends_the_run_with_our_words(server: CompletionsServer, status: int, what: str) -> None:
    server.faults.statuses = [status] * 50
    with pytest.raises(EngineError, match=what):
        engine(server).sample(PROMPTS, uniform(), max_new_tokens=4, seed=0)


def test_a_server_that_is_away(server: CompletionsServer) -> None:
    with pytest.raises(EngineError, match=r"at http://127.0.0.1:9 does not answer.*start it, and give the same command again"):
        engine_of("vllm:http://127.0.0.1:9,retries=0", MODEL, TOKENIZER).sample(PROMPTS, uniform(), max_new_tokens=4, seed=0)
    assert "client" not in vars(engine(server).server)  # a new engine sends nothing


def test_finished_responses_come_before_the_error_of_a_server_that_dies(server: CompletionsServer) -> None:
    whole = engine(server).sample(PROMPTS * 3, uniform(), max_new_tokens=4, seed=0)
    server.faults.dies_after = server.finished + 5
    found, dying = {}, engine(server, ",probe=false,concurrency=2,retries=0")
    with pytest.raises(EngineError, match="does not answer"):
        for row, response in dying.stream(PROMPTS * 3, uniform(), max_new_tokens=4, seed=0):
            found[row] = response
    assert len(found) == 5 and all(whole[row] == response for row, response in found.items())


def test_texts_are_tokenized_again_where_a_server_returns_no_ids(server: CompletionsServer, capsys: Any) -> None:
    server.faults.texts = True
    with pytest.raises(EngineError, match="returned no token ids"):
        engine(server).sample(PROMPTS, uniform(), max_new_tokens=4, seed=0)
    server.faults.owner, server.faults.top_k = "a host", 0
    space = ("temperature:0.5,1", "top_p:0.5,1")
    found = engine_of(f"openai:{server.url}", MODEL, TOKENIZER).sample(PROMPTS, uniform(*space), max_new_tokens=8, seed=0)
    assert server.bodies[-1]["prompt"] in ("Once upon a time", "2 + 3 =", "Tom had a", "Lily saw a big")
    assert "top_k" not in server.bodies[-1]
    assert all(row.ids and row.text == TOKENIZER.decode(row.ids, skip_special_tokens=True) for row in found)


def test_the_wrong_profile_or_model_is_named(server: CompletionsServer) -> None:
    for profile, settings, what in [
        ("llama.cpp", "", "is of profile 'vllm'"),
        ("vllm", ",served=other", "serves testbed, not 'other'"),
    ]:
        with pytest.raises(EngineError, match=what):
            engine(server, settings, profile).sample(PROMPTS, uniform("temperature:0.5,1"), max_new_tokens=4, seed=0)


@pytest.mark.parametrize(
    ("profile", "policy", "what"),
    [
        ("vllm", UniformPolicy(SPACE, Every(1)), "chooses once for a whole response.*'token'"),
        ("vllm", uniform("typical_p:0.5,1"), "'vllm' have no field for the knob 'typical_p'"),
        ("vllm", uniform("top_p:0.5,1", "min_p:0,0.1"), "apply min_p, top_p in this order.*order='vllm'"),
        ("vllm", uniform("temperature:0,3"), "temperature 3 is not a value.*between 0.01 and 2"),
        ("sglang", uniform("top_k:0,5", "top_p:0.5,1"), "top_k and top_p in an order that depends on the other requests"),
        ("openai", uniform("min_p:0,0.1"), "'openai' have no field for the knob 'min_p'. They take temperature, top_p"),
    ],
)
def test_what_a_profile_cannot_express_is_refused_by_name(profile: str, policy: Policy, what: str) -> None:
    one = engine_of(f"openai:url=http://127.0.0.1:9,profile={profile}", MODEL, TOKENIZER)
    with pytest.raises(ConfigError, match=what):
        one.check(policy)


def test_llama_cpp_gets_the_order_of_the_space() -> None:
    one = engine_of("llama.cpp:http://127.0.0.1:9", MODEL, TOKENIZER)
    assert isinstance(one, OpenAIEngine)
    policy = uniform("temperature:0,3", "typical_p:0.5,1", "xtc_threshold:0.1,1", order="transformers")
    one.check(policy)
    body = one.profile.body(policy.space, (3.0, 0.5, 0.1))
    assert body["samplers"] == ["temperature", "typ_p", "xtc"] and body["xtc_probability"] == 1.0
    assert one.profile.body(policy.space, (1.0, 1.0, 1.0))["xtc_probability"] == 0.0
    assert (body["top_k"], body["min_p"], body["mirostat"], body["repeat_penalty"]) == (0, 0.0, 0, 1.0)


@pytest.mark.parametrize(
    ("spec", "what"),
    [("openai:url=localhost", "not the address of a server"), ("openai:url=http://h,concurrency=0", "at least 1"),
     ("openai:url=http://h,profile=vlm", "no profile 'vlm'.*vllm"), ("openai", "url")],
)  # fmt: skip
def test_settings_that_do_not_fit(spec: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        engine_of(spec, MODEL, TOKENIZER)


def test_without_the_package_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, server: CompletionsServer) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ConfigError, match=r"need the package openai: pip install"):
        engine(server).sample(PROMPTS, uniform(), max_new_tokens=4, seed=0)


def test_a_server_that_knows_no_policies(server: CompletionsServer) -> None:
    with pytest.raises(EngineError, match=r"was not started by `latentknobs serve`.*engine='vllm:http"):
        engine_of(f"serve:{server.url},retries=0", MODEL, TOKENIZER).check(uniform())


TRAINING: dict[str, Any] = {
    "knobs": ["temperature:0.3,1.2"], "level": "sequence", "train_prompts": 5, "rollouts": 3, "max_new_tokens": 6, "steps": 2,
    "eval_size": 0, "batch_size": 8,
}  # fmt: skip


def test_training_over_http_survives_a_server_that_dies_and_ends_the_same(
    server: CompletionsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"vllm:{server.url},retries=0,concurrency=2"
    whole = lk.train(engine=where, output_dir=str(tmp_path / "whole"), **TRAINING)
    assert "log-probabilities differ from it by" in capsys.readouterr().err
    assert json.loads((whole.path / "round-1" / "drift.jsonl").read_text())["outside"] == 0
    rows = [json.loads(line) for line in (whole.path / "round-1" / "rollouts" / "00000.jsonl").read_text().splitlines()]
    assert all(len(row["logps"]) == len(row["ids"]) == len(row["options"]) for row in rows)
    server.finished, server.bodies = 0, []
    server.faults.dies_after = 12
    with pytest.raises(EngineError, match="does not answer"):
        lk.train(engine=where, output_dir=str(tmp_path / "killed"), **TRAINING)
    assert len((tmp_path / "killed" / "unfinished" / "round-1-rollouts-00000.jsonl").read_text().splitlines()) > 3
    server.faults = Faults()
    again = lk.train(engine=where, output_dir=str(tmp_path / "killed"), **TRAINING)
    for file in ("rollouts/00000.jsonl", "scores/00000.jsonl", "examples.jsonl"):
        assert (again.path / "round-1" / file).read_bytes() == (whole.path / "round-1" / file).read_bytes()
    before = len(server.bodies)
    lk.train(engine="vllm:http://127.0.0.1:9", output_dir=str(again.path), **TRAINING)  # all files are there: no server is needed
    assert len(server.bodies) == before
    assert not list((again.path / "unfinished").iterdir())


def test_evaluation_over_http(server: CompletionsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lk.train(output_dir=str(tmp_path), **TRAINING)
    report = lk.evaluate(run.adapter, engine=f"vllm:{server.url}", eval_size=3, tune_size=3, seeds=1, max_new_tokens=8)
    assert "0 of" in (shown := err(capsys)) and "log-probabilities differ from it by" in shown
    assert server.finished > 20 and "learned head" in report.rewards
    with pytest.raises(ConfigError, match="no field for the knob 'top_h'"):
        lk.evaluate(run.adapter, engine=f"vllm:{server.url}", extra={"other": uniform("top_h:0.4,1")}, eval_size=3, tune_size=3)


def test_tokens_outside_the_kept_set_are_counted_and_dropped_or_floored(
    server: CompletionsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.ignores = {"top_k"}  # a drift far beyond that of number formats
    settings = TRAINING | {
        "knobs": ["top_k:3,12"],
        "eval_size": 0,
        "engine": f"vllm:{server.url},probe=false",
        "train_prompts": 9,
    }
    lk.train(output_dir=str(tmp_path / "dropped"), **settings)
    assert re.search(
        r"[1-9]\d* of \d+ tokens are outside the kept set.*does the engine run the same weights", shown := err(capsys)
    )
    assert re.search(r"[1-9] of [1-9] examples are left out", shown)
    lk.train(output_dir=str(tmp_path / "floored"), floor=-20.0, **settings)
    assert "examples are left out" not in err(capsys)


def err(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err
